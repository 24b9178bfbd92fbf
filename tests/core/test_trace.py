"""Trace Context: what its standard says of headers, case by case."""

import re

import pytest

from pilothouse.core.trace import TraceContext, current_trace, session_trace

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}-03", True),
        (f"00-{TRACE}-{PARENT}-02", False),
        (f" 00-{TRACE}-{PARENT}-01\t", True),
        (f"cc-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-00-what-the-future-will-be-like", False),
    ],
)
def test_a_header_that_holds_is_gone_on_with(header: str, sampled: bool) -> None:
    trace = TraceContext.of_request(header)
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, PARENT, sampled)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id)
    assert trace.span_id != PARENT
    assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-{'01' if sampled else '00'}"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-01.",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0g",
        f"0-{TRACE}-{PARENT}-01",
    ],
)
def test_a_header_that_does_not_begins_a_trace(header: str | None) -> None:
    trace, other = TraceContext.of_request(header), TraceContext.of_request(header)
    assert trace.trace_id not in (TRACE, other.trace_id)
    assert trace.parent_id is None
    assert trace.sampled
    assert TraceContext.of_request(trace.traceparent).parent_id == trace.span_id


def test_several_outcomes_of_a_request_have_spans_of_their_own() -> None:
    assert session_trace() is None
    trace = TraceContext.of_request(f"00-{TRACE}-{PARENT}-00")
    token = current_trace.set(trace)
    try:
        first, *later = [session_trace() for _ in range(3)]
    finally:
        current_trace.reset(token)
    assert first is trace
    assert [(s.trace_id, s.parent_id, s.sampled) for s in later if s] == [(TRACE, trace.span_id, False)] * 2
    assert len({trace.span_id, *(s.span_id for s in later if s)}) == 3
