"""Many streams at once, each under its own plan."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx
from serve_support.server import Server

from matrix_support.kinds import COMPLETIONS
from matrix_support.requests import COMPLETION, PROBES, Answer, Kind, alone, assembled, counters

PROMPTS = [
    f"{'Well then. ' * (number % 5)}The capital of {place} is"
    for number, place in enumerate(["France", "Spain", "Italy", "Japan", "Peru", "Egypt", "Norway"])
]
PLANS: list[list[dict[str, Any]]] = [
    [{"vector": "everywhere", "layers": [layer], "strength": 1.0, "positions": positions}]
    for layer, positions in ((0, "all"), (1, "generation"), (2, "all"), (3, "generation"), (4, "all"))
] + [
    [{"vector": "everywhere", "op": "ablate", "layers": [1, 3]}],
    [{"vector": "cheerful", "strength": 2.0, "positions": "last_prompt"}],
    [{"vector": "honest", "strength": -0.5}, {"vector": "everywhere", "op": "ablate", "layers": [4]}],
]


@dataclass(frozen=True)
class Crowd:
    """The answers; the same plain request alone before and after; what the counters grew by; what the server said."""

    answers: list[Answer]
    before: dict[str, Any]
    after: dict[str, Any]
    counted: dict[tuple[str, str, str], float]
    log: str


def gather(server: Server, size: int) -> Crowd:
    """`size` streams, half of them steered, half of either read."""
    kind = Kind(COMPLETIONS, {"max_tokens": 8}, lambda answers: None)
    seen, before = len(server.log.read_text(errors="replace")), alone(server, kind)
    counted = counters(server)
    answers = asyncio.run(stream_all(server.url, [body(number) for number in range(size)]))
    grown = {key: value - counted.get(key, 0.0) for key, value in counters(server).items()}
    after = alone(server, kind)
    grown = {key: value for key, value in grown.items() if value}
    return Crowd(answers, before, after, grown, server.log.read_text(errors="replace")[seen:])


def body(number: int) -> dict[str, Any]:
    read, steered = number % 2 == 0, number % 4 < 2
    fields: dict[str, Any] = {"steering": PLANS[number // 4 % len(PLANS)]} if steered else {}
    fields["probes"] = {"names": PROBES, "tokens": True} if read else []
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return {**COMPLETION, "max_tokens": 8, "prompt": PROMPTS[number % len(PROMPTS)], **options, **fields}


async def stream_all(url: str, bodies: list[dict[str, Any]]) -> list[Answer]:
    """All of them open at once."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=limits) as client:

        async def one(asked: dict[str, Any]) -> Answer:
            async with client.stream("POST", COMPLETIONS, json=asked) as stream:
                lines = [line async for line in stream.aiter_lines() if line]
                assert stream.status_code == 200, lines
            assert lines[-1] == "data: [DONE]"
            return assembled(asked, [json.loads(line.removeprefix("data: ")) for line in lines[:-1]])

        return list(await asyncio.gather(*map(one, bodies)))
