"""Spans on the wire: what a collector is told of a request, and what is counted when it takes nothing."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from api_support.otlp import EVALUATION, attributes, evaluations, grpc_collector, http_collector
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pilothouse.core.errors import StartupError
from pilothouse.core.records import NO_TOKEN_IDS, ChoiceOutcome, ProbeOutcome, RequestOutcome
from pilothouse.core.trace import TraceContext
from pilothouse.telemetry.otlp import Endpoint, parse_endpoint
from pilothouse.telemetry.spans import Spans

TRACE = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "b7ad6b7169203331", "00f067aa0ba902b7")
PROBES = (
    ProbeOutcome("risk", 0.75, 0.5, True, 6, version="sha256:12", level="low"),
    ProbeOutcome("truth", 0.25, None, False, 6),
    ProbeOutcome("adhoc", None, None, False, 0, "one_generated_token"),
)
OUTCOME = RequestOutcome(
    response_id="chatcmpl-7",
    model_name="tiny",
    route="/v1/chat/completions",
    steering="honest",
    steered_by=("honest",),
    created=1_700_000_000.5,
    choices=(ChoiceOutcome(PROBES, {"honest": 6}, n_generated=7), ChoiceOutcome(PROBES[1:2], n_generated=3)),
    body=({"index": 0, "finish_reason": "stop"}, {"index": 1, "finish_reason": "length"}),
    seconds=2.25,
    n_prompt=12,
    plan_digests=("aa", "bb"),
    trace=TRACE,
)


def wait_for(counted: Callable[[], dict[str, int]], total: int) -> dict[str, int]:
    """The counts once nothing is on its way any more."""
    deadline = time.monotonic() + 20
    while sum(counted().values()) < total and time.monotonic() < deadline:
        time.sleep(0.01)
    return counted()


def sent(outcome: RequestOutcome) -> Span:
    with http_collector() as collector:
        spans = Spans(collector.url)
        spans.observe(outcome)
        spans.close(10)
        (span,) = collector.spans
    assert spans.counts() == {"exported": 1, "dropped": 0}
    return span


def test_a_span_says_what_is_known_of_the_request() -> None:
    span = sent(OUTCOME)
    assert span.name == "chat tiny"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()) == (
        TRACE.trace_id,
        TRACE.span_id,
        TRACE.parent_id,
    )
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (
        1_700_000_000_500_000_000,
        1_700_000_002_750_000_000,
    )
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "pilothouse",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 10,
        "pilothouse.route": "/v1/chat/completions",
        "pilothouse.steering": "honest",
        "pilothouse.vectors": ["honest"],
        "pilothouse.plan_digests": ["aa", "bb"],
        "pilothouse.flagged": True,
    }
    assert {event.time_unix_nano for event in span.events} == {span.end_time_unix_nano}


def test_every_probe_of_every_choice_is_an_event() -> None:
    common = {"gen_ai.response.id": "chatcmpl-7", "pilothouse.choice": 0}
    truth = {
        "gen_ai.evaluation.name": "truth",
        "gen_ai.evaluation.score.value": 0.25,
        "gen_ai.evaluation.score.label": "ok",
        "pilothouse.flagged": False,
        "pilothouse.scored_tokens": 6,
    }
    assert evaluations(sent(OUTCOME)) == [
        common
        | {
            "gen_ai.evaluation.name": "risk",
            "gen_ai.evaluation.score.value": 0.75,
            "gen_ai.evaluation.score.label": "low",
            "pilothouse.flagged": True,
            "pilothouse.scored_tokens": 6,
            "pilothouse.probe.version": "sha256:12",
        },
        common | truth,
        common
        | {
            "gen_ai.evaluation.name": "adhoc",
            "gen_ai.evaluation.explanation": "not scored: one_generated_token",
            "pilothouse.scored_tokens": 0,
        },
        common | truth | {"pilothouse.choice": 1},
    ]


@pytest.mark.parametrize("collecting", [http_collector, grpc_collector])
@pytest.mark.parametrize("logs", [True, False])
def test_events_are_log_records_too_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, collecting: Any, logs: bool
) -> None:
    if logs:
        monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    with collecting() as collector:
        spans = Spans(collector.url)
        spans.observe(OUTCOME)
        spans.close(10)
        (span,) = collector.spans
        records = collector.records
    assert spans.counts() == {"exported": 1, "dropped": 0}
    assert spans.log_counts() == {"exported": 4 * logs, "dropped": 0}
    assert [attributes(record.attributes) for record in records] == (evaluations(span) if logs else [])
    for record in records:
        assert record.event_name == EVALUATION
        assert (record.trace_id, record.span_id, record.flags) == (span.trace_id, span.span_id, 1)
        assert record.time_unix_nano == span.end_time_unix_nano


@pytest.mark.parametrize(
    ("error", "gaps", "kind"),
    [
        ("aborted", (), "aborted"),
        ("TimeoutError", (), "TimeoutError"),
        ("the engine left something out", ("edited",), "engine_gap"),
        ("what vLLM said of it", (), "_OTHER"),
    ],
)
def test_a_failed_request_is_an_error(error: str, gaps: Any, kind: str) -> None:
    span = sent(replace(OUTCOME, error=error, choices=(ChoiceOutcome(gaps=gaps),), body=({"finish_reason": None},)))
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, error)
    found = attributes(span.attributes)
    assert found["error.type"] == kind
    assert "gen_ai.response.finish_reasons" not in found


def test_a_prompt_without_token_ids_is_none() -> None:
    span = sent(replace(OUTCOME, error=NO_TOKEN_IDS, route="/v1/completions", trace=None))
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert span.name == "text_completion tiny"
    assert "error.type" not in attributes(span.attributes)
    assert len(span.trace_id) == 16
    assert not span.parent_span_id


def test_no_word_of_a_client_costs_others_their_spans() -> None:
    with http_collector() as collector:
        spans = Spans(collector.url)
        spans.observe(replace(OUTCOME, response_id="\ud800" + "x" * 100_000))
        spans.observe(OUTCOME)
        spans.close(10)
        ids = [attributes(span.attributes)["gen_ai.response.id"] for span in collector.spans]
    assert ids == ["?" + "x" * 255, "chatcmpl-7"]


def test_what_is_not_sampled_stays_here() -> None:
    with http_collector() as collector:
        spans = Spans(collector.url)
        spans.observe(replace(OUTCOME, trace=replace(TRACE, sampled=False)))
        spans.close(10)
        assert collector.spans == []
    assert spans.counts() == {"exported": 0, "dropped": 0}


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        (None, None, {"service.name": "pilothouse"}),
        ("mine", None, {"service.name": "mine"}),
        (None, "service.name=theirs,zone=north", {"service.name": "theirs", "zone": "north"}),
    ],
)
def test_who_sends_is_said_as_the_environment_has_it(
    monkeypatch: pytest.MonkeyPatch, name: str | None, more: str | None, expected: dict[str, str]
) -> None:
    for variable, value in (("OTEL_SERVICE_NAME", name), ("OTEL_RESOURCE_ATTRIBUTES", more)):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    with http_collector() as collector:
        spans = Spans(collector.url)
        spans.observe(OUTCOME)
        spans.close(10)
        (request,) = collector.traces
    found = attributes(request.resource_spans[0].resource.attributes)
    assert expected.items() <= found.items()
    assert {"service.version", "process.pid", "telemetry.sdk.name"} <= set(found)


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_dead_collector_loses_spans_and_says_so_once(caplog: pytest.LogCaptureFixture, scheme: str) -> None:
    spans = Spans(f"{scheme}://127.0.0.1:{unused_port()}", delay=0.05, timeout=0.2)
    with caplog.at_level(logging.WARNING):
        for n in range(3):
            spans.observe(OUTCOME)
            assert wait_for(spans.counts, n + 1) == {"exported": 0, "dropped": n + 1}
        spans.close()
    assert [record.name for record in caplog.records] == ["pilothouse.telemetry.losses"]
    assert "Lost 1 spans" in caplog.text


def test_a_refusing_collector_loses_what_it_refuses(caplog: pytest.LogCaptureFixture) -> None:
    with http_collector(status=500) as collector, caplog.at_level(logging.WARNING):
        spans = Spans(collector.url, delay=0.02)
        for _ in range(3):
            spans.observe(OUTCOME)
        assert wait_for(spans.counts, 3) == {"exported": 0, "dropped": 3}
        collector.status = 200
        spans.observe(OUTCOME)
        assert wait_for(spans.counts, 4) == {"exported": 1, "dropped": 3}
        spans.close()
        assert len(collector.spans) == 1
    assert [record.name for record in caplog.records] == ["pilothouse.telemetry.losses"]


def test_refused_log_records_cost_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    with http_collector() as collector:
        spans = Spans(collector.url)
        spans.observe(OUTCOME)
        taken = wait_for(spans.log_counts, 4)
        collector.status = 404
        spans.observe(OUTCOME)
        spans.close(10)
    assert taken == {"exported": 4, "dropped": 0}
    assert spans.counts() == {"exported": 1, "dropped": 1}
    assert spans.log_counts() == {"exported": 4, "dropped": 4}


def test_a_slow_collector_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    with http_collector(slow=True) as collector, caplog.at_level(logging.WARNING):
        spans = Spans(collector.url, delay=0.02, queue=5)
        spans.observe(OUTCOME)
        assert collector.arrived.wait(10)
        for _ in range(11):
            spans.observe(OUTCOME)
        # One is on its way, four wait; nothing of that is known yet.
        assert spans.counts() == {"exported": 0, "dropped": 7}
        collector.held.set()
        assert wait_for(spans.counts, 12) == {"exported": 5, "dropped": 7}
        spans.close()
        assert len(collector.spans) == 5
    assert [record.name for record in caplog.records] == ["pilothouse.telemetry.losses"]


def test_what_is_counted_is_what_arrives_however_many_come() -> None:
    with http_collector() as collector:
        spans = Spans(collector.url, delay=0.01, queue=200)
        for _ in range(3000):
            spans.observe(OUTCOME)
        counts = wait_for(spans.counts, 3000)
        spans.close()
        assert counts["dropped"] > 0
        assert counts == {"exported": len(collector.spans), "dropped": 3000 - len(collector.spans)}


def test_the_end_does_not_wait_for_a_collector_that_never_answers() -> None:
    with http_collector(slow=True) as collector:
        spans = Spans(collector.url, delay=0.02)
        spans.observe(OUTCOME)
        assert collector.arrived.wait(10)
        spans.observe(OUTCOME)
        spans.close(0.1)
        assert spans.counts() == {"exported": 0, "dropped": 2}
        spans.observe(OUTCOME)
        collector.held.set()
        for thread in threading.enumerate():
            if thread.name.startswith("OtelBatch"):
                thread.join(10)
        assert spans.counts() == {"exported": 0, "dropped": 3}, "what is counted as lost stays so"


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("http://here:4318", Endpoint(False, False, "http://here:4318")),
        ("http://here:4318/", Endpoint(False, False, "http://here:4318")),
        ("https://there/otlp", Endpoint(False, True, "https://there/otlp")),
        ("https://there/otlp/v1/traces", Endpoint(False, True, "https://there/otlp")),
        ("grpc://here:4317", Endpoint(True, False, "http://here:4317")),
        ("grpc://here", Endpoint(True, False, "http://here:4317")),
        ("grpcs://[::1]:9", Endpoint(True, True, "https://[::1]:9")),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", "here:4318", "ftp://here", "http://", "http://here:port", "http://here:99999", "grpc://here:1/path", "http://[",
     "grpc://me@here", "https://me:secret@here/?key=secret", "http://here#there"],
)  # fmt: skip
def test_bad_endpoints_end_the_start(text: str) -> None:
    with pytest.raises(StartupError, match="--otlp-endpoint takes") as refused:
        Spans(text)
    assert "secret" not in str(refused.value)
