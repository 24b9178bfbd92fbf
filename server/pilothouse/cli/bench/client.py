"""A burst of requests over HTTP, timed by a client that burns next to nothing.

It shares the machine with the server that it measures, so inside the timed loop it only notes when bytes came; what
they say is read afterwards. Connections are opened before the clock starts and are used once.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from pilothouse.core.errors import PilothouseError

HOST = "127.0.0.1"
EVENT = b"\ndata: "
"""What every event of a stream begins with: a line end comes before it, of the chunk's length or of the last event, and
inside an event's JSON line ends are escaped."""
_DONE = b"[DONE]"
_NO_CHOICES = (b'"choices":[]', b'"choices": []')
_PATIENCE_SECONDS = 900.0
_BLOCK = 1 << 18


Found = TypeVar("Found")


class BenchError(PilothouseError):
    """A server did not answer a benchmark's request as it should."""


@dataclass(frozen=True)
class Answer:
    """One answer: when each piece of it came, in seconds since the burst began, and the pieces."""

    times: list[float]
    pieces: list[bytes]

    def events(self) -> list[tuple[float, bytes]]:
        """Each event of a stream, less `[DONE]`, with the time at which its beginning had come."""
        whole = b"".join(self.pieces)
        ends = np.cumsum([len(piece) for piece in self.pieces])
        found = []
        at = whole.find(EVENT)
        while at >= 0:
            begin = at + len(EVENT)
            after = whole.find(EVENT, begin)
            event = whole[begin : after if after >= 0 else len(whole)]
            if not event.startswith(_DONE):
                piece = int(np.searchsorted(ends, begin, side="left"))
                found.append((self.times[piece], event))
            at = after
        return found

    def json(self) -> dict[str, Any]:
        """The body of an answer that is not a stream."""
        whole = b"".join(self.pieces)
        head, _, body = whole.partition(b"\r\n\r\n")
        _check(head, body)
        found: dict[str, Any] = json.loads(body)
        return found


@dataclass(frozen=True)
class Burst:
    """What a burst took. seconds: until the last answer; cpu_seconds: of all processes of the server meanwhile;
    ttft_ms: median time to the first token; itl_p50_ms, itl_p99_ms: gaps between the events of a stream, of all
    requests together. The last three of streams only."""

    seconds: float
    tokens: int
    cpu_seconds: float | None = None
    ttft_ms: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


async def send(port: int, bodies: Sequence[bytes], path: str = "/v1/completions") -> tuple[float, list[Answer]]:
    """Send all bodies at once; seconds until the last answer has come, and the answers."""
    doors = await asyncio.gather(*(_open(port) for _ in bodies))
    begin = time.perf_counter()
    asked = (_ask(door, _request(port, path, body), begin) for door, body in zip(doors, bodies, strict=True))
    answers = await _within_patience(asyncio.gather(*asked))
    return time.perf_counter() - begin, answers


async def latencies(port: int, bodies: Sequence[bytes], at_once: int, path: str = "/v1/completions") -> list[float]:
    """Send the bodies in order, never more than `at_once` under way; milliseconds until each was answered."""
    turn = asyncio.Semaphore(at_once)

    async def one(body: bytes) -> float:
        async with turn:
            door = await _open(port)
            begin = time.perf_counter()
            answer = await _ask(door, _request(port, path, body), begin)
        answer.json()
        return 1000.0 * answer.times[-1]

    return await _within_patience(asyncio.gather(*map(one, bodies)))


Door = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _open(port: int) -> Door:
    return await asyncio.open_connection(HOST, port, limit=_BLOCK)


def _request(port: int, path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _ask(door: Door, request: bytes, begin: float) -> Answer:
    """Send `request` and take its answer; the connection is used up. begin: when its pieces are timed from."""
    reader, writer = door
    answer = Answer([], [])
    try:
        writer.write(request)
        while piece := await reader.read(_BLOCK):
            answer.times.append(time.perf_counter() - begin)
            answer.pieces.append(piece)
    finally:
        writer.close()
    return answer


async def _within_patience(answers: Awaitable[list[Found]]) -> list[Found]:
    try:
        return await asyncio.wait_for(answers, _PATIENCE_SECONDS)
    except TimeoutError:
        raise BenchError(f"a burst was not answered within {_PATIENCE_SECONDS:.0f} seconds") from None


def measured(seconds: float, answers: Sequence[Answer], streamed: bool, cpu_seconds: float | None = None) -> Burst:
    """What a burst's answers say; BenchError when one of them is none."""
    if not streamed:
        tokens = sum(answer.json()["usage"]["completion_tokens"] for answer in answers)
        return Burst(seconds, tokens, cpu_seconds)
    tokens, first, gaps = 0, [], []
    for answer in answers:
        events = answer.events()
        if not events:
            head, _, body = b"".join(answer.pieces).partition(b"\r\n\r\n")
            _check(head, body)
            raise BenchError("a stream had no events")
        tokens += _usage(events)
        times = [when for when, event in events if not any(none in event for none in _NO_CHOICES)]
        first.append(times[0])
        gaps += list(np.diff(times))
    p50, p99 = (1000 * float(np.percentile(gaps, q)) if gaps else None for q in (50, 99))
    return Burst(seconds, tokens, cpu_seconds, 1000 * statistics.median(first), p50, p99)


def _usage(events: Sequence[tuple[float, bytes]]) -> int:
    """Tokens generated, by the event at a stream's end that says so."""
    for _, event in reversed(events):
        line = event.split(b"\n", 1)[0]
        found = json.loads(line)
        if "error" in found:
            raise BenchError(f"a stream ended with an error: {line.decode()[:300]}")
        if found.get("usage"):
            return int(found["usage"]["completion_tokens"])
    raise BenchError("a stream did not say how many tokens it had")


def _check(head: bytes, body: bytes) -> None:
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise BenchError(f"a request was answered with {head[:40]!r}: {body.decode(errors='replace')[:300]}")
