"""Metrics: the names and labels of the table, and what each of them counts."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from telemetry_support.outcomes import MODEL, outcome, probe_info, scored

from pilothouse.core.records import Activity, GapKind, GateOutcome, ProbeOutcome
from pilothouse.probing.quality import Quality
from pilothouse.telemetry.families import FAMILIES
from pilothouse.telemetry.followed import RecordCounts
from pilothouse.telemetry.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(pilothouse_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|")


def exercise(metrics: Metrics) -> None:
    """Have every metric counted once."""
    reference = {"edges": [0.0, 0.5, 1.0], "counts": [1, 1]}
    metrics.show_registry(MODEL, [probe_info(reference_histogram=reference)], [], ["v"])
    gate = GateOutcome("v", "p", "steer", 2)
    watched = ProbeOutcome("p", 0.5, 1.0, True, 3, n_expected=4, activity=Activity(2, 1.5))
    unscored = ProbeOutcome("p", None, None, False, 0, "aborted")
    metrics.observe(outcome(watched, edited={"v": 4}, steering="v", gates=(gate,), strengths={"v": 0.3}))
    metrics.observe(outcome(unscored, gaps=("edited",)))
    metrics.add_step_times(MODEL, {"prepare": 0.5, "read": 0.25}, 7)
    metrics.count_label(MODEL, "p", flagged=True, value=False)
    metrics.show_quality(MODEL, {"p": Quality(0.5, 0.25, 0.125, 4)})
    metrics.follow_records(RecordCounts)
    metrics.follow_spans(dict)
    metrics.follow_log_lines(dict)
    metrics.follow_sink_errors(lambda: {"Store": 1})


def test_names_and_labels_are_those_of_the_table(metrics: Metrics, registry: CollectorRegistry) -> None:
    exercise(metrics)
    metrics.show_registry(MODEL, [probe_info(reference_histogram={"edges": [0.0, 1.0], "counts": [1]})], [], [])
    found: dict[str, set[str]] = {}
    kinds: dict[str, str] = {}
    for family in metrics.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kinds[name] = family.type
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    # No vector is registered any more.
    found["pilothouse_vector_info"] = set(FAMILIES["pilothouse_vector_info"].labels)
    assert found == {family.name: set(family.labels) for family in FAMILIES.values()}
    assert kinds == {family.name: family.kind for family in FAMILIES.values()}
    assert not any(":" in name for name in found)


def test_the_page_of_the_docs_lists_the_table() -> None:
    rows = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in ROW.findall(DOCS.read_text())
    }
    assert rows == {family.name: (family.kind, family.labels) for family in FAMILIES.values()}


def test_the_queries_of_the_docs_name_metrics_that_exist() -> None:
    known = {name: name for name in FAMILIES}
    for family in FAMILIES.values():
        if family.kind == "histogram":
            known |= {f"{family.name}_{part}": family.name for part in ("bucket", "sum", "count")}
    queries = "\n".join(re.findall(r"```promql\n(.*?)```", DOCS.read_text(), re.DOTALL))
    named = re.findall(r"(pilothouse_\w+)(?:\{([^}]*)\})?", queries)
    assert len(named) > 5
    for name, matchers in named:
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - {"le"}
        assert labels <= set(FAMILIES[known[name]].labels), name


def test_what_is_not_scored_is_counted_apart(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.observe(outcome(ProbeOutcome("p", None, 0.25, False, 0, "one_generated_token")))
    labels = {"model_name": MODEL, "probe": "p"}
    value = registry.get_sample_value
    assert value("pilothouse_probe_unscored_total", {**labels, "reason": "one_generated_token"}) == 1
    assert value("pilothouse_probe_score_count", {**labels, "steering": "none"}) is None
    assert value("pilothouse_probe_prompt_end_sum", {**labels, "steering": "none"}) == 0.25
    assert value("pilothouse_probe_requests_total", {**labels, "flagged": "false"}) == 0


def test_a_probe_that_never_flagged_has_a_series_to_rise_from(metrics: Metrics, registry: CollectorRegistry) -> None:
    labels = {"model_name": MODEL, "probe": "p", "flagged": "true"}
    assert registry.get_sample_value("pilothouse_probe_requests_total", labels) == 0
    metrics.observe(outcome(scored(0.9, flagged=True)))
    assert registry.get_sample_value("pilothouse_probe_requests_total", labels) == 1


def test_gaps_are_counted_by_choice_and_kind(metrics: Metrics, registry: CollectorRegistry) -> None:
    given: tuple[tuple[GapKind, ...], ...] = (("edited", "scored"), ("edited",), ())
    for gaps in given:
        metrics.observe(outcome(gaps=gaps))

    def value(kind: GapKind) -> float | None:
        return registry.get_sample_value("pilothouse_engine_gaps_total", {"model_name": MODEL, "kind": kind})

    assert (value("edited"), value("scored"), value("forwarded")) == (2, 1, None)


def test_gates_features_strengths_and_coverage_are_counted(metrics: Metrics, registry: CollectorRegistry) -> None:
    gates = (GateOutcome("v", "p", "steer", 3), GateOutcome("w", "adhoc", "stop", 1))
    watched = ProbeOutcome("p", 0.5, None, False, 5, n_expected=6, activity=Activity(2, 7.5))
    for _ in range(2):
        metrics.observe(outcome(watched, edited={"v": 4}, steering="v", gates=gates, strengths={"v": 0.25}))
    value = registry.get_sample_value
    of_gate = {"model_name": MODEL, "vector": "v", "probe": "p", "action": "steer"}
    assert value("pilothouse_gate_firings_total", of_gate) == 2
    assert value("pilothouse_gate_positions_total", of_gate) == 6
    stops = {"model_name": MODEL, "vector": "w", "probe": "adhoc", "action": "stop"}
    assert value("pilothouse_gate_positions_total", stops) == 2
    of_probe = {"model_name": MODEL, "probe": "p"}
    names = ("probe_tokens", "probe_expected_tokens", "feature_tokens", "feature_active_tokens", "feature_activation")
    assert [value(f"pilothouse_{name}_total", of_probe) for name in names] == [10, 12, 10, 4, 15]
    of_vector = {"model_name": MODEL, "vector": "v"}
    buckets = [value("pilothouse_steering_strength_bucket", {**of_vector, "le": le}) for le in ("0.2", "0.3", "+Inf")]
    assert buckets == [0, 2, 2]
    assert value("pilothouse_steering_tokens_total", of_vector) == 8


def test_step_times_add_up(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.add_step_times(MODEL, {"prepare": 0.5, "read": 0.25}, 3)
    metrics.add_step_times(MODEL, {"prepare": 1.0}, 2)
    value = registry.get_sample_value
    seconds = [
        value("pilothouse_step_seconds_total", {"model_name": MODEL, "phase": phase}) for phase in ("prepare", "read")
    ]
    assert seconds == [1.5, 0.25]
    assert value("pilothouse_steps_total", {"model_name": MODEL}) == 5
