"""What vLLM is told of traces: nothing that it has no use for, and otherwise that its spans lie under ours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_support.artefacts import write_all
from api_support.client import Client
from api_support.fake_engine import FakeServer
from api_support.vllm_routes import FakeVllm
from fastapi import Request
from opentelemetry.trace import get_current_span
from starlette.types import Message, Receive, Scope, Send
from vllm.tracing import extract_trace_context, extract_trace_headers

from pilothouse.api.trace_context import TraceRequests
from pilothouse.core.trace import current_trace

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def seen(server: FakeServer) -> list[Any]:
    """The trace and the headers of every request to /seen."""
    found: list[Any] = []

    async def take(request: Request) -> None:
        found.append((current_trace.get(), request.headers))

    server.app.add_api_route("/seen", take)
    return found


def have_vllm_trace(server: FakeServer) -> None:
    server.app.state.pilothouse = replace(server.app.state.pilothouse, engine_traces=True)


@pytest.mark.parametrize("given", [[], [("traceparent", CLIENTS), ("tracestate", "a=1")], [("traceparent", "broken")]])
async def test_headers_are_the_clients_own_where_vllm_does_not_trace(
    client: Client, seen: list[Any], given: list[tuple[str, str]]
) -> None:
    await client.http.get("/seen", headers=given)
    ((trace, headers),) = seen
    assert extract_trace_headers(headers) == dict(given)
    assert (trace.trace_id == TRACE) == (("traceparent", CLIENTS) in given)
    assert current_trace.get() is None


async def test_vllms_spans_lie_under_ours(server: FakeServer, client: Client, seen: list[Any]) -> None:
    have_vllm_trace(server)
    await client.http.get("/seen", headers={"TraceParent": CLIENTS, "tracestate": "a=1"})
    await client.http.get("/seen")
    for (trace, headers), known in zip(seen, (True, False), strict=True):
        assert headers.getlist("traceparent") == [trace.traceparent]
        parent = get_current_span(extract_trace_context(extract_trace_headers(headers))).get_span_context()
        assert f"{parent.trace_id:032x}" == trace.trace_id
        assert f"{parent.span_id:016x}" == trace.span_id
        assert dict(parent.trace_state) == ({"a": "1"} if known else {})
        assert (trace.trace_id == TRACE) is known


async def test_a_state_without_its_trace_goes(server: FakeServer, client: Client, seen: list[Any]) -> None:
    have_vllm_trace(server)
    await client.http.get("/seen", headers={"traceparent": "broken", "tracestate": "a=1"})
    await client.http.get("/seen", headers=[("traceparent", CLIENTS), ("traceparent", CLIENTS), ("tracestate", "a=1")])
    for trace, headers in seen:
        assert extract_trace_headers(headers) == {"traceparent": trace.traceparent}
        assert trace.trace_id != TRACE


@pytest.mark.parametrize("traced", [True, False])
async def test_vllms_engine_is_given_our_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: bool) -> None:
    server = FakeServer(write_all(tmp_path))
    if traced:
        have_vllm_trace(server)
    vllm = FakeVllm(server)
    vllm.app.add_middleware(TraceRequests)
    given: list[Any] = []
    generate = vllm.client._generate

    def spy(*args: Any, **more: Any) -> Any:
        given.append((more.get("trace_headers"), current_trace.get()))
        return generate(*args, **more)

    monkeypatch.setattr(vllm.client, "_generate", spy)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(vllm.app), base_url="http://vllm") as http:
        body = {"model": "tiny", "input": "hello", "max_output_tokens": 3, "probes": ["risk"]}
        response = await http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    ((headers, trace),) = given
    assert headers == ({"traceparent": trace.traceparent} if traced else None)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_only_http_is_traced(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, current_trace.get()))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": kind, "headers": [(b"traceparent", CLIENTS.encode())]}
    await TraceRequests(app)(scope, receive, send)
    assert seen == [(scope, None)]
    assert seen[0][0] is scope
