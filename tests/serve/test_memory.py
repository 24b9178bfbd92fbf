"""Fifteen thousand requests of all kinds: what they leave in the memory of all processes of the server together is
nothing that adds up, and metrics, records and log lines say the same of them."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serve_support.agreement import Counts, by_lines, by_metrics, by_records
from serve_support.memory import SMALL, resident
from serve_support.server import D_MODEL, Server, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

AT_ONCE = 16
WARM_UP = 9000
"""Requests until what is bounded is full: records, kept scores, and what kernels and allocators keep for themselves."""
N_DIRECTIONS = 64
REQUESTS = 6000
MOST_PER_THOUSAND = 1.0
"""MB of growth that 1,000 requests may leave."""
PROMPTS = [f"Question {number}: what is the capital of France, and why? " + "And? " * number for number in range(24)]


def completion(rng: random.Random, **fields: Any) -> dict[str, Any]:
    return {
        "model": "harbor",
        "prompt": rng.choice(PROMPTS),
        "max_tokens": rng.randint(1, 8),
        "ignore_eos": True,
        **fields,
    }


def inline(rng: random.Random) -> dict[str, Any]:
    """One of a few: directions are kept up to a limit in bytes that this test would not reach."""
    row = np.random.default_rng(rng.randrange(N_DIRECTIONS)).normal(size=D_MODEL).astype("<f4")
    return {"inline": {"layers": {"3": base64.b64encode(row.tobytes()).decode()}}, "strength": 0.1}


async def answered(client: httpx.AsyncClient, body: dict[str, Any], status: int = 200) -> None:
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text


async def plain(client: httpx.AsyncClient, rng: random.Random) -> None:
    await answered(client, completion(rng, probes=[]))


async def steered(client: httpx.AsyncClient, rng: random.Random) -> None:
    await answered(client, completion(rng, steering=[inline(rng)]))


async def several(client: httpx.AsyncClient, rng: random.Random) -> None:
    steering = [{"vector": "everywhere", "strength": rng.uniform(0.01, 0.2), "positions": "generation"}]
    await answered(client, completion(rng, n=4, temperature=1, steering=steering))


async def prompt_scores(client: httpx.AsyncClient, rng: random.Random) -> None:
    await answered(client, completion(rng, probes={"names": ["truthfulness"], "prompt": True, "tokens": True}))


async def refused(client: httpx.AsyncClient, rng: random.Random) -> None:
    await answered(client, completion(rng, steering=[{"vector": "nobody"}]), status=400)


async def streamed(client: httpx.AsyncClient, rng: random.Random) -> None:
    async with client.stream("POST", "/v1/completions", json=completion(rng, stream=True)) as answer:
        assert [line async for line in answer.aiter_lines() if line][-1] == "data: [DONE]"


async def left(client: httpx.AsyncClient, rng: random.Random) -> None:
    """A client that goes away in the middle of its answer."""
    body = completion(rng, stream=True, steering=[inline(rng)]) | {"max_tokens": 400}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            return


KINDS: list[Callable[[httpx.AsyncClient, random.Random], Awaitable[None]]] = [
    plain,
    steered,
    several,
    prompt_scores,
    refused,
    streamed,
    left,
]


async def send(server: Server, total: int, rng: random.Random) -> Counter[str]:
    """`total` requests of all kinds, AT_ONCE under way."""
    done: Counter[str] = Counter()
    remaining = iter(range(total))
    # A connection a request: a pool that drops idle ones among so many tasks now and then drops one in use.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, trust_env=False, limits=limits) as client:

        async def one_after_the_other() -> None:
            for _ in remaining:
                kind = rng.choice(KINDS)
                await kind(client, rng)
                done[kind.__name__] += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return done


def compare(server: Server, folder: Path) -> Counts:
    """What metrics count, once records and log lines count the same; those of a client that left come last."""
    deadline = time.monotonic() + 60
    while True:
        counted = by_metrics(server.get("/metrics").text)
        recorded = by_records(folder / "records.sqlite")
        with (folder / "requests.jsonl").open() as lines:
            logged = by_lines(lines)
        if counted == recorded == logged or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert counted == recorded
    assert counted == logged
    return counted


def test_many_requests_leave_no_memory_behind_and_are_counted_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(11)
    with serving(tmp_path, *SMALL, "--request-log", str(tmp_path / "requests.jsonl")) as server:
        asyncio.run(send(server, WARM_UP, rng))
        before = resident(server)
        done = asyncio.run(send(server, REQUESTS, rng))
        after = resident(server)
        counted = compare(server, tmp_path)
    grown = {name: after[name] - before[name] for name in before}
    per_thousand = sum(grown.values()) * 1000 / REQUESTS
    with capsys.disabled():
        print(f"\n{dict(done)}: {per_thousand:+.2f} MB per 1,000 requests; {grown}")
    assert set(after) == set(before)
    assert set(done) == {kind.__name__ for kind in KINDS}
    assert per_thousand <= MOST_PER_THOUSAND
    # All but the plain and the refused ones.
    assert sum(n for (name, *_), n in counted.items() if name == "pilothouse_requests_total") > 10_000
