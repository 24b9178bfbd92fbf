"""Mixed traffic for a server with a made-up engine, and what its sinks take of it.

Run with a number, it is such a server: it sends the traffic that often, and prints what its records say metrics count.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from api_support.artefacts import EARLY, RISK, TRUTH, write_all
from api_support.client import INLINE, PROMPT, connect
from api_support.fake_engine import CHAT, COMPLETIONS, FakeServer

from pilothouse.core.records import RequestOutcome

THRESHOLDS: dict[str, float] = {card["name"]: card["threshold"] for card in (TRUTH, RISK, EARLY)}

_CALM, _HONEST = {"vector": "calm"}, {"vector": "honest"}
_FEATURE = {"sae": "features", "feature": 1}
_WAYS: list[dict[str, Any]] = [
    {"probes": ["risk", "truthfulness"], "n": 3},
    {"probes": ["risk", "early"], "steering": [{**_CALM, "positions": "generation"}], "n": 2},
    {"probes": ["risk"], "steering": [_HONEST, _CALM, _CALM]},
    {"probes": ["truthfulness", _FEATURE], "steering": [{**_FEATURE, "strength": 2}, INLINE]},
    {"probes": ["risk"], "steering": [{**_HONEST, "gate": {"probe": "risk", "when": "above", "threshold": 0.5}}]},
    {"probes": ["risk", "early"], "max_tokens": 1},
    {"steering": [_FEATURE]},
    {"probes": ["risk"], "fake": {"poisoned": [0, 1, 2, 3, 4, 5]}},
    {"probes": ["risk"], "steering": [_CALM], "fake": {"late": 2, "per_step": 2}},
    {"probes": ["risk"], "fake": {"lost": [1]}, "n": 2},
    {"steering": [_CALM], "probes": ["early"], "fake": {"unedited": 1}},
]

MIXED: list[dict[str, Any]] = [
    *({**way, "stream": stream} for way in _WAYS for stream in (False, True)),
    {"probes": ["risk"], "n": 2, "stream": True, "fake": {"abort": 2, "late": 3}},
    {"probes": ["risk", "truthfulness"], "stream": True, "fake": {"fails": True}},
    {"unwatched": True},
]
"""Bodies of requests. `unwatched`: it asks for nothing, so that it leaves no record."""


class Taker:
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[RequestOutcome] = []

    def observe(self, outcome: RequestOutcome) -> None:
        self.taken.append(outcome)


def watch(server: FakeServer) -> Taker:
    """One more sink beside the server's own."""
    taker = Taker()
    sinks: Any = server.extension._around.sink  # type: ignore[attr-defined]
    sinks._sinks = (*sinks._sinks, taker)
    return taker


async def send(http: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> list[int]:
    """All at once, by turns to both routes; their status codes."""

    async def one(number: int, body: dict[str, Any]) -> int:
        path = (CHAT, COMPLETIONS)[number % 2]
        said = {"messages": [{"role": "user", "content": PROMPT}]} if path == CHAT else {"prompt": PROMPT}
        fields = {key: value for key, value in body.items() if key != "unwatched"}
        return (await http.post(path, json={**said, **fields, "user": str(number)})).status_code

    return await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))


async def _serve(times: int) -> None:
    from telemetry_support.outcomes import expected

    with tempfile.TemporaryDirectory() as folder:
        server = FakeServer(write_all(Path(folder)))
        taker = watch(server)
        async with connect(server) as http:
            await send(http, MIXED * times)
    counts = expected(taker.taken, THRESHOLDS)
    print(json.dumps([[name, dict(labels), count] for (name, labels), count in counts.items()]))


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
