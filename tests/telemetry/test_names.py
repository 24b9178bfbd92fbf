"""Label values: configured names and fixed words, whatever arrives."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from telemetry_support.outcomes import MODEL, make_metrics, outcome

from pilothouse.api.guard import HONOURING
from pilothouse.api.scoring import ENGINE_GAP, FAILED, NOT_FINITE
from pilothouse.core.records import ABORTED, ChoiceOutcome, GateOutcome, ProbeOutcome, RequestOutcome
from pilothouse.probing.quality import Quality
from pilothouse.telemetry.exposition import render
from pilothouse.telemetry.metrics import Metrics
from pilothouse.telemetry.names import FIXED_WORDS, MAX_JOINED, REASONS, ROUTES, Names
from pilothouse.telemetry.registry_info import VectorInfo

CONFIGURED = {MODEL, "p", "v", "w", "s", "v+w", "s+v", "s+w", "s+v+w"}
ALLOWED = CONFIGURED | FIXED_WORDS | {"true", "false", "edited", "scored", "forwarded", "steer", "stop"}

hostile = st.one_of(
    st.sampled_from([*sorted(CONFIGURED), *sorted(FIXED_WORDS), 'x"} 1\n', "v+v", "w+v", "+", "P", "p "]), st.text()
)
probes = st.builds(
    ProbeOutcome,
    hostile,
    st.one_of(st.none(), st.floats(-1, 2)),
    st.one_of(st.none(), st.floats(-1, 2)),
    st.booleans(),
    st.integers(0, 9),
    st.one_of(st.none(), hostile),
)
gates = st.builds(GateOutcome, hostile, hostile, st.sampled_from(["steer", "stop"]), st.integers(1, 9))
choices = st.builds(
    ChoiceOutcome,
    st.lists(probes, max_size=3).map(tuple),
    st.dictionaries(hostile, st.integers(0, 9), max_size=3),
    st.sampled_from([(), ("edited",), ("scored", "forwarded")]),
    st.lists(gates, max_size=2).map(tuple),
)
requests = st.builds(
    RequestOutcome,
    hostile,
    hostile,
    hostile,
    hostile,
    st.lists(hostile, max_size=4).map(tuple),
    st.just(0.0),
    st.lists(choices, max_size=2).map(tuple),
    strengths=st.dictionaries(hostile, st.floats(0, 9), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=5), hostile, hostile)
def test_no_value_is_anything_but_a_configured_name_or_a_fixed_word(
    several: list[RequestOutcome], model: str, probe: str
) -> None:
    metrics = make_metrics(CollectorRegistry())
    for request in several:
        metrics.observe(request)
    metrics.count_label(model, probe, True, False)
    metrics.show_quality(model, {probe: Quality(0.5, 0.5, 0.5, 1)})
    metrics.add_step_times(model, {probe: 1.0, "read": 1.0}, 1)
    found = {
        value
        for family in metrics.collect()
        if not family.name.endswith("_info")
        for sample in family.samples
        for label, value in sample.labels.items()
        if label not in ("le", "phase")
    }
    assert found <= ALLOWED
    assert render(metrics).body


def test_the_words_are_those_of_the_api() -> None:
    assert HONOURING | {"other"} == ROUTES
    assert {ABORTED, ENGINE_GAP, FAILED, NOT_FINITE} < REASONS


def test_steering_is_checked_against_what_steered() -> None:
    names = Names()
    names.add(["m"], ["p"], ["a", "b"])

    def label(steering: str, *steered_by: str) -> str:
        return names.steering(RequestOutcome("", "m", "", steering, steered_by, 0.0, ()))

    assert label("none") == "none"
    assert label("a", "a") == "a"
    assert label("a+b", "b", "a") == "a+b"
    assert label("adhoc", "a", "adhoc") == "adhoc"
    assert [label("a+c", "a", "c"), label("a", "b"), label("none", "a"), label("a")] == ["adhoc"] * 4


def test_combinations_end_in_one_word() -> None:
    names = Names()
    vectors = [f"v{i}" for i in range(10)]
    names.add(vectors=vectors)
    found = {
        names.steering(RequestOutcome("", "m", "", "+".join(sorted(three)), three, 0.0, ()))
        for three in combinations(vectors, 3)
    }
    assert len(found) == MAX_JOINED + 1
    assert "several" in found
    # What has a value keeps it, and single names always have theirs.
    assert names.steering(RequestOutcome("", "m", "", "v0+v1+v2", ("v0", "v1", "v2"), 0.0, ())) == "v0+v1+v2"
    assert names.steering(RequestOutcome("", "m", "", "v9", ("v9",), 0.0, ())) == "v9"


def test_a_vector_called_by_a_word_with_a_meaning_counts_as_nobodys() -> None:
    names = Names()
    names.add(vectors=["none"], probes=["adhoc"])
    assert names.vector("none") == "adhoc"
    assert names.steering(RequestOutcome("", "m", "", "none", ("none",), 0.0, ())) == "adhoc"


def test_a_request_that_outlives_a_name_counts_under_it(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.show_registry(MODEL, [], [VectorInfo("w", "", "")])
    metrics.observe(outcome(edited={"v": 2}, steering="v"))
    assert registry.get_sample_value("pilothouse_steering_tokens_total", {"model_name": MODEL, "vector": "v"}) == 2
