"""The client of `pilothouse bench` against a server that says when it sends what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pilothouse.cli.bench.client import Answer, BenchError, measured, send

Handler = Callable[[dict[str, Any], asyncio.StreamWriter], Coroutine[Any, Any, None]]
GAP = 0.03
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """The port of a server that reads one request a connection, lets `handler` answer it, and hangs up."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        await handler(json.loads(await reader.readexactly(length)), writer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def write_event(writer: asyncio.StreamWriter, event: Any) -> None:
    data = f"data: {event if isinstance(event, str) else json.dumps(event, separators=(',', ':'))}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def stream(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Three tokens with gaps of GAP, the second with a text that looks like an event, then usage."""
    writer.write(HEAD)
    for text in ("a", "x\ndata: y", "c"):
        await asyncio.sleep(GAP)
        await write_event(writer, {"choices": [{"text": text}]})
    await write_event(writer, {"choices": [], "usage": {"completion_tokens": 3}})
    await write_event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")


async def whole(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    data = json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}).encode()
    # In two pieces, as large answers come.
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:7])
    await writer.drain()
    await asyncio.sleep(GAP)
    writer.write(data[7:])


async def refuse(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 16\r\n\r\n{"error":"no"}  ')


async def fail(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await write_event(writer, {"choices": [{"text": "a"}]})
    await write_event(writer, {"error": {"message": "it broke"}})


async def test_a_stream_is_timed_by_its_events() -> None:
    async with serving(stream) as port:
        seconds, answers = await send(port, [b"{}"] * 4)
    burst = measured(seconds, answers, streamed=True, cpu_seconds=0.5)
    assert (burst.tokens, burst.cpu_seconds) == (12, 0.5)
    assert burst.ttft_ms is not None
    assert burst.itl_p50_ms is not None
    assert burst.itl_p99_ms is not None
    assert 1000 * GAP <= burst.ttft_ms < 3000 * GAP
    assert 500 * GAP < burst.itl_p50_ms < 2000 * GAP
    assert burst.itl_p50_ms <= burst.itl_p99_ms
    assert 3 * GAP <= seconds < 12 * GAP


async def test_events_are_those_of_the_stream_and_not_of_their_texts() -> None:
    async with serving(stream) as port:
        _, (answer,) = await send(port, [b"{}"])
    times = [when for when, _ in answer.events()]
    assert len(times) == 4
    assert times == sorted(times)


def test_an_event_has_the_time_of_the_piece_that_it_begins_in() -> None:
    event = b'data: {"choices":[{"text":"a"}]}\n\n'
    stream = b"HTTP/1.1 200 OK\r\n\r\n" + event + event
    pieces = [stream[:30], stream[30:60], stream[60:]]
    answer = Answer([1.0, 2.0, 3.0], pieces)
    assert [when for when, _ in answer.events()] == [1.0, 2.0]
    split = Answer([1.0, 2.0], [stream[:21], stream[21:]])
    assert [when for when, _ in split.events()] == [2.0, 2.0]


async def test_an_answer_that_is_no_stream_has_throughput_alone() -> None:
    async with serving(whole) as port:
        seconds, answers = await send(port, [b'{"max_tokens": 7}', b'{"max_tokens": 5}'])
    burst = measured(seconds, answers, streamed=False)
    assert (burst.tokens, burst.ttft_ms, burst.itl_p50_ms, burst.itl_p99_ms) == (12, None, None, None)
    assert burst.seconds >= GAP


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_ends_the_run(streamed: bool) -> None:
    async with serving(refuse) as port:
        seconds, answers = await send(port, [b"{}"])
    with pytest.raises(BenchError, match=r"400.*no"):
        measured(seconds, answers, streamed)


async def test_a_stream_that_breaks_off_ends_the_run() -> None:
    async with serving(fail) as port:
        seconds, answers = await send(port, [b"{}"])
    with pytest.raises(BenchError, match="it broke"):
        measured(seconds, answers, streamed=True)
