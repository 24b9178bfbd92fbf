"""Traces, evaluations and log lines of requests over HTTP, held against the responses and records of the same."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_support.artefacts import write_all
from api_support.client import HEADERS, INLINE, PROMPT, Client, connect, strict_json
from api_support.fake_engine import CHAT, COMPLETIONS, FakeServer
from api_support.otlp import Kept, attributes, evaluations, http_collector
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pilothouse.core.errors import StartupError

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = f"00-{TRACE}-{PARENT}-01"

HONEST = [{"vector": "honest", "positions": "generation"}]
MIXED: list[dict[str, Any]] = [
    {"probes": ["risk", "truthfulness"], "n": 3},
    {"probes": ["risk"], "steering": HONEST, "n": 2, "stream": True},
    {"probes": ["truthfulness"], "steering": [{"sae": "features", "feature": 1}, INLINE]},
    {"probes": ["risk", "early"], "max_tokens": 1},
    {"probes": ["risk"], "fake": {"poisoned": [0, 1, 2, 3, 4, 5]}},
    {"steering": HONEST, "stream": True},
    {"probes": ["risk"], "stream": True, "fake": {"abort": 3}},
    {"probes": ["risk"], "stream": True, "fake": {"fails": True}},
    {"probes": ["risk"], "fake": {"lost": [1, 2]}},
    {"probes": ["risk"], "stream": True, "fake": {"lost": [1, 2]}},
]
UNRECORDED: list[dict[str, Any]] = [{}, {"stream": True}, {"probes": ["nobody"]}]


@asynccontextmanager
async def serving(folder: Path, **config: Any) -> AsyncIterator[tuple[FakeServer, Client]]:
    """A server's life, to its end."""
    server = FakeServer(write_all(folder, **config))
    async with server.app.router.lifespan_context(server.app), connect(server) as http:
        yield server, Client(http)


def logged(path: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in path.read_text().splitlines()]


async def record_of(client: Client, user: str) -> dict[str, Any]:
    found = await client.http.get(f"/v1/probes/results/chatcmpl-{user}", headers=HEADERS)
    record = strict_json(found.content)
    assert isinstance(record, dict)
    return record


async def one_span(folder: Path, headers: Any, **body: Any) -> tuple[Span, dict[str, Any], Any]:
    """The span and the log line of one request, and its response."""
    with http_collector() as collector:
        async with serving(folder, otlp_endpoint=collector.url, request_log=str(folder / "log")) as (_, client):
            messages = [{"role": "user", "content": PROMPT}]
            response = await client.http.post(CHAT, json={"messages": messages, **body}, headers=headers)
        (span,), (line,) = collector.spans, logged(folder / "log")
    return span, line, response


async def test_a_clients_trace_is_gone_on_with(tmp_path: Path) -> None:
    span, line, _ = await one_span(tmp_path, {"traceparent": CLIENTS}, probes=["risk"])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.span_id.hex() != PARENT
    assert (line["trace_id"], line["span_id"]) == (TRACE, span.span_id.hex())


@pytest.mark.parametrize(
    "given",
    [
        [],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", CLIENTS), ("traceparent", CLIENTS)],
        [("traceparent", CLIENTS + "-more")],
    ],
)
async def test_without_one_that_holds_a_trace_begins(tmp_path: Path, given: list[tuple[str, str]]) -> None:
    span, line, _ = await one_span(tmp_path, given, probes=["risk"])
    assert not span.parent_span_id
    assert span.trace_id.hex() == line["trace_id"] != TRACE


async def test_what_the_client_does_not_sample_is_not_sent(tmp_path: Path) -> None:
    with http_collector() as collector:
        async with serving(tmp_path, otlp_endpoint=collector.url, request_log=str(tmp_path / "log")) as (_, client):
            client.http.headers["traceparent"] = f"00-{TRACE}-{PARENT}-00"
            await client.chat(probes=["risk"])
        assert collector.spans == []
    assert [line["trace_id"] for line in logged(tmp_path / "log")] == [TRACE]


@pytest.mark.parametrize("stream", [False, True])
async def test_evaluations_are_the_scores_of_the_response(tmp_path: Path, stream: bool) -> None:
    body = {"probes": ["risk", "truthfulness"], "steering": HONEST, "n": 2, "stream": stream, "user": "one"}
    span, line, response = await one_span(tmp_path, {}, **body)
    if stream:
        chunks = [json.loads(event[6:]) for event in response.text.split("\n\n") if event.startswith("data: {")]
        choices = {c["index"]: c for chunk in chunks for c in chunk["choices"] if "probes" in c}
    else:
        choices = {choice["index"]: choice for choice in response.json()["choices"]}
    assert len(choices) == 2
    found = {(e["pilothouse.choice"], e["gen_ai.evaluation.name"]): e for e in evaluations(span)}
    shown = {(i, name): probe for i, choice in choices.items() for name, probe in choice["probes"].items()}
    assert found.keys() == shown.keys()
    for key, probe in shown.items():
        assert found[key]["gen_ai.evaluation.score.value"] == probe["score"]
        assert found[key]["pilothouse.flagged"] is probe["flagged"]
        assert found[key]["gen_ai.response.id"] == "chatcmpl-one"
    assert {(p["choice"], p["probe"]): p["score"] for p in line["probes"]} == {k: p["score"] for k, p in shown.items()}
    assert span.name == "chat tiny"
    about = attributes(span.attributes)
    assert about["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert (about["pilothouse.steering"], about["pilothouse.vectors"]) == ("honest", ["honest"])


async def test_mixed_traffic_leaves_the_same_in_records_lines_and_spans(tmp_path: Path) -> None:
    with http_collector() as collector:
        async with serving(tmp_path, otlp_endpoint=collector.url, request_log=str(tmp_path / "log")) as (_, client):
            for k, body in enumerate([*MIXED, *UNRECORDED]):
                await client.chat(user=f"r{k}", **body)
            records = {f"chatcmpl-r{k}": await record_of(client, f"r{k}") for k in range(len(MIXED))}
        spans = {attributes(span.attributes)["gen_ai.response.id"]: span for span in collector.spans}
        assert len(collector.spans) == len(MIXED)
    lines = {line["response_id"]: line for line in logged(tmp_path / "log")}
    assert len(logged(tmp_path / "log")) == len(MIXED)
    assert records.keys() == lines.keys() == spans.keys()
    errors = {record["error"] is None for record in records.values()}
    assert errors == {True, False}
    for name, record in records.items():
        line, span = lines[name], spans[name]
        for theirs, ours in (("time", "created"), ("model", "model"), ("route", "route"), ("steering", "steering")):
            assert line[ours] == record[theirs]
        assert line["error"] == record["error"]
        assert span.status.code == (Status.STATUS_CODE_UNSET if record["error"] is None else Status.STATUS_CODE_ERROR)
        assert (line["trace_id"], line["span_id"]) == (span.trace_id.hex(), span.span_id.hex())
        probes = [
            (choice["index"], probe, found["score"], found["flagged"], found.get("reason"))
            for choice in record["choices"]
            for probe, found in choice.get("probes", {}).items()
        ]
        assert [(p["choice"], p["probe"], p["score"], p["flagged"], p["reason"]) for p in line["probes"]] == probes
        events = [
            (e["pilothouse.choice"], e["gen_ai.evaluation.name"], e.get("gen_ai.evaluation.score.value"))
            for e in evaluations(span)
        ]
        assert events == [probe[:3] for probe in probes]


async def test_nothing_that_was_said_leaves_the_server(tmp_path: Path) -> None:
    secret = "a word that nobody else says"
    with http_collector() as collector:
        async with serving(tmp_path, otlp_endpoint=collector.url, request_log=str(tmp_path / "log")) as (_, client):
            await client.complete(prompt=[secret, secret], probes=["risk"], user="me")
            await client.complete(prompt=secret, probes=["risk"], stream=True, fake={"fails": True})
        (span, *_) = collector.spans
        told = b"".join(request.SerializeToString() for request in collector.traces)
    assert span.name == "text_completion tiny"
    assert secret.encode() not in told
    assert b"\xc2\xab" not in told, "no token of an answer"
    text = (tmp_path / "log").read_text()
    assert secret not in text
    assert "\\u00ab" not in text


def dead(_: Kept) -> str:
    return "http://127.0.0.1:9"


@pytest.mark.parametrize(("status", "url"), [(200, lambda kept: kept.url), (500, lambda kept: kept.url), (200, dead)])
async def test_responses_do_not_depend_on_where_spans_and_lines_go(
    tmp_path: Path, status: int, url: Callable[[Kept], str]
) -> None:
    bodies = MIXED * 3
    async with serving(tmp_path / "plain") as (_, client):
        expected = [(await client.chat(**body)).content for body in bodies]
    with http_collector(status, slow=status == 200) as collector:
        where = {"otlp_endpoint": url(collector), "request_log": "/dev/full"}
        async with serving(tmp_path / "told", **where) as (server, client):
            found = [(await client.chat(**body)).content for body in bodies]
            lines, spans = (close.__self__ for close in server.app.state.pilothouse.closing)
        assert found == expected
        assert collector.spans == []
    assert lines.counts() == {"written": 0, "dropped": len(bodies)}
    assert spans.counts() == {"exported": 0, "dropped": len(bodies)}


async def test_what_is_not_asked_for_is_not_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        assert server.app.state.pilothouse.closing == ()


@pytest.mark.parametrize("config", [{"otlp_endpoint": "here"}, {"request_log": "/nowhere/to/be/found"}])
def test_bad_places_end_the_start(tmp_path: Path, config: dict[str, str]) -> None:
    with pytest.raises(StartupError):
        FakeServer(write_all(tmp_path, **config))


async def test_batches_of_prompts_are_one_outcome(tmp_path: Path) -> None:
    with http_collector() as collector:
        async with serving(tmp_path, otlp_endpoint=collector.url) as (_, client):
            await client.http.post(COMPLETIONS, json={"prompt": ["a", "b"], "probes": ["risk"]})
        (span,) = collector.spans
    assert [event["pilothouse.choice"] for event in evaluations(span)] == [0, 1]
