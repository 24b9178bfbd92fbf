"""What prompt scores cost when the prompt is in the prefix cache: kept beside the blocks, or forwarded again.

One request at a time on our own server, so that the time of an answer is the time of its prompt: a conversation that
the cache has never seen, then the same one again in every variant, in random order.
"""

import random
import statistics
import time
from typing import Any

import httpx

from pilothouse.cli.bench.servers import Server
from pilothouse.cli.bench.shapes import PROMPT_IDS

N_TOKENS = 960
COLD = "first time, prompt scores kept"
KEPT = "again, prompt scores from the store"
RECOMPUTED = "again, prompt forwarded for its scores"
CACHED = "again, no prompt scores"


async def measure_prompt_scores(
    server: Server, model: str, probes: list[str], rounds: int, seed: int
) -> list[dict[str, Any]]:
    """One item for each variant and round: seconds until the answer to a prompt of N_TOKENS tokens."""
    shuffle = random.Random(seed)
    items = []
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:
        for number in range(-2, rounds):
            prompt = shuffle.choices(PROMPT_IDS, k=N_TOKENS)
            variants = [KEPT, RECOMPUTED, CACHED]
            shuffle.shuffle(variants)
            for variant in (COLD, *variants):
                body = _body(model, prompt, probes, variant, number)
                begin = time.perf_counter()
                answer = await client.post("/v1/completions", json=body)
                seconds = time.perf_counter() - begin
                answer.raise_for_status()
                cached = (answer.json()["usage"].get("prompt_tokens_details") or {}).get("cached_tokens")
                if number >= 0:
                    items.append({"round": number, "variant": variant, "seconds": seconds, "cached_tokens": cached})
    return items


def summarise_prompt_scores(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median milliseconds of each variant, and the median of its ratio to the cached prompt without scores."""
    seconds = {(item["round"], item["variant"]): item["seconds"] for item in items}
    rounds = sorted({item["round"] for item in items})
    if not rounds:
        return []
    return [
        {
            "variant": variant,
            "milliseconds": 1000 * statistics.median(seconds[r, variant] for r in rounds),
            "of_cached": statistics.median(seconds[r, variant] / seconds[r, CACHED] for r in rounds),
        }
        for variant in (COLD, RECOMPUTED, KEPT, CACHED)
    ]


def _body(model: str, prompt: list[int], probes: list[str], variant: str, number: int) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    body["probes"] = {"names": probes, "prompt": variant != CACHED}
    if variant == RECOMPUTED:
        # Nothing was ever cached under this salt: the prompt is forwarded as if its scores had not been kept.
        body["cache_salt"] = f"bench-{number}"
    return body
