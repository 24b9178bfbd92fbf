"""Mixed traffic: plain, steered, several choices, scored prompts, refused, streamed, and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np

from serve_support.server import D_MODEL, Server

AT_ONCE = 16
N_DIRECTIONS = 64
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
