"""Exemplars: which request is behind a bucket or a count, and what is never one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar
from telemetry_support.outcomes import make_metrics, outcome, scored

from pilothouse.core.records import ProbeOutcome
from pilothouse.core.trace import TraceContext
from pilothouse.telemetry import exemplars
from pilothouse.telemetry.exemplars import MAX_EXEMPLARS, Exemplars, Seen, exemplar_labels, key_of
from pilothouse.telemetry.exposition import render
from pilothouse.telemetry.metrics import Metrics

TRACE = TraceContext("ab" * 16, "cd" * 8)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def shown(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], Exemplar]:
    """The exemplars of a page, by name and labels, as a parser reads them."""
    page = render(metrics, OPENMETRICS).body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.exemplar._replace(
            timestamp=float(sample.exemplar.timestamp)
        )
        for family in text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"pilothouse_{name}", frozenset({"model_name": "m", **labels}.items())


def test_the_newest_request_of_a_bucket_is_its_exemplar(registry: CollectorRegistry) -> None:
    now = [9.0]
    metrics = make_metrics(registry, clock=lambda: now[0])
    for response_id, score in (("first", 0.88), ("second", 0.89), ("third", 0.872)):
        probe = ProbeOutcome("p", score, 0.125, score > 0.873, 1)
        now[0] += 1
        metrics.observe(outcome(probe, response_id=response_id, trace=TRACE))
    found = shown(metrics)
    # Those beyond the threshold have buckets of their own, so that nothing harmless hides them.
    bucket = {"probe": "p", "steering": "none"}
    assert found == {
        key("probe_score_bucket", **bucket, le="0.9"): exemplar("second", 0.89, 11.0),
        key("probe_score_bucket", **bucket, le="0.873"): exemplar("third", 0.872, 12.0),
        key("probe_prompt_end_bucket", **bucket, le="0.15"): exemplar("third", 0.125, 12.0),
        key("probe_requests_total", probe="p", flagged="true"): exemplar("second", 1.0, 11.0),
        key("probe_requests_total", probe="p", flagged="false"): exemplar("third", 1.0, 12.0),
        key("requests_total", route="/v1/completions", steering="none"): exemplar("third", 1.0, 12.0),
    }


def exemplar(response_id: str, value: float, time: float) -> Exemplar:
    return Exemplar({"trace_id": TRACE.trace_id, "request_id": response_id}, value, time)


def test_the_text_format_has_none(metrics: Metrics) -> None:
    metrics.observe(outcome(scored(0.5), response_id="here", trace=TRACE))
    page = render(metrics)
    assert b"here" not in page.body
    assert b"pilothouse_probe_score_bucket" in page.body


@pytest.mark.parametrize(
    ("response_id", "kept"),
    [
        ("chatcmpl-1", True),
        ("a" * 78, True),
        ("a" * 79, False),
        ("", False),
        ('"} 1 # {x="', False),
        ("two\nlines", False),
        ("ein Ä", False),
        ("\ud800", False),
    ],
)
def test_an_id_that_does_not_fit_is_left_out(response_id: str, kept: bool) -> None:
    labels = exemplar_labels(outcome(response_id=response_id, trace=TRACE))
    assert labels["trace_id"] == TRACE.trace_id
    assert labels.get("request_id") == (response_id if kept else None)
    without = exemplar_labels(outcome(response_id=response_id))
    assert set(without) == ({"request_id"} if kept or response_id == "a" * 79 else set())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_whatever_the_id_the_page_can_be_read(response_id: str) -> None:
    metrics = make_metrics(CollectorRegistry())
    metrics.observe(outcome(scored(0.5), response_id=response_id, trace=TRACE))
    found = shown(metrics)
    assert found
    for seen in found.values():
        assert sum(len(name) + len(value) for name, value in seen.labels.items()) <= 128
        assert seen.labels["trace_id"] == TRACE.trace_id


def test_without_trace_and_id_there_is_no_exemplar(metrics: Metrics) -> None:
    metrics.observe(outcome(scored(0.5), response_id=""))
    assert shown(metrics) == {}


def test_they_do_not_grow_without_end() -> None:
    kept = Exemplars()
    for i in range(MAX_EXEMPLARS + 10):
        kept.keep(key_of("a", {"le": str(i)}), Seen({}, 0.0, float(i)))
    found = kept.all()
    assert len(found) == MAX_EXEMPLARS
    assert ("a", (("le", "9"),)) not in found
    assert ("a", (("le", "10"),)) in found


def test_of_several_processes_the_newest_wins() -> None:
    one, two = Exemplars(), Exemplars()
    one.keep(key_of("a", {"le": "1"}), Seen({"request_id": "old"}, 0.5, 1.0))
    two.keep(key_of("a", {"le": "1"}), Seen({"request_id": "new"}, 0.6, 2.0))
    one.keep(key_of("a", {"le": "2"}), Seen({"request_id": "only"}, 0.7, 0.0))
    together = exemplars.newest([one.all(), exemplars.load(two.dump())])
    assert {seen.labels["request_id"] for seen in together.values()} == {"new", "only"}
