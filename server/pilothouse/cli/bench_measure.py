"""The rounds of a benchmark, and the ratios that follow from them.

Every ratio is of two variants of the same round, so that drift of the machine cancels.
"""

import random
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from rich.progress import track

from pilothouse.cli.bench_load import Load, Server, burst
from pilothouse.cli.bench_variants import CHAIN_COSTS, PLAIN, VARIANTS, Place, Variant, body_of

Items = list[dict[str, Any]]
Servers = Mapping[Place, Server]
Name = TypeVar("Name", bound=str)

N_WARM_UP = 2
N_RESAMPLED = 4000


async def measure_throughput(load: Load, servers: Servers, rounds: int, seed: int) -> Items:
    """One item for each variant and round: seconds until the last answer of a burst, and tokens generated."""
    shuffle = random.Random(seed)
    items = []
    for number in track(range(-N_WARM_UP, rounds), description="rounds", transient=True):
        order = list(VARIANTS)
        shuffle.shuffle(order)
        for variant in order:
            bodies = [body_of(variant, load, i) for i in range(load.batch)]
            with alone(servers, variant.server) as server:
                seconds, generated = await burst(server, bodies)
            if number >= 0:
                items.append({"round": number, "variant": variant.name, "seconds": seconds, "tokens": generated})
    return items


@contextmanager
def alone(servers: Mapping[Name, Server], place: Name) -> Iterator[Server]:
    """The server at `place`, all others stopped for as long as the block runs."""
    with ExitStack() as stack:
        for other, server in servers.items():
            if other != place:
                stack.enter_context(server.paused())
        yield servers[place]


def summarise(items: Items, seed: int) -> Items:
    """Median ratio to plain vLLM of the same round, with a bootstrap interval, for each variant."""
    rates = _rates(items)
    rng = np.random.default_rng(seed)
    return [
        {
            "variant": variant.name,
            "tokens_per_second": statistics.median(rates[variant.name]),
            **_ratio(rates, variant, PLAIN, rng),
        }
        for variant in VARIANTS
    ]


def summarise_chains(items: Items, seed: int) -> Items:
    """The same for what a server with chains compiled in does beside one without, on the same load."""
    rates = _rates(items)
    rng = np.random.default_rng(seed)
    return [{"variant": ours.name, "beside": bare.name, **_ratio(rates, ours, bare, rng)} for ours, bare in CHAIN_COSTS]


def _rates(items: Items) -> dict[str, list[float]]:
    """Tokens per second of each variant, one for each round and in their order."""
    rate = {(item["round"], item["variant"]): item["tokens"] / item["seconds"] for item in items}
    rounds = sorted({item["round"] for item in items})
    return {variant.name: [rate[number, variant.name] for number in rounds] for variant in VARIANTS}


def _ratio(
    rates: Mapping[str, list[float]], variant: Variant, beside: Variant, rng: np.random.Generator
) -> dict[str, float]:
    """The median over rounds of one variant's rate divided by the other's, and 95% of its bootstrap medians."""
    return median_of(np.array(rates[variant.name]) / np.array(rates[beside.name]), rng)


def median_of(ratios: npt.NDArray[np.float64], rng: np.random.Generator) -> dict[str, float]:
    """The median of ratios, one a round, and 95% of its bootstrap medians."""
    medians = np.median(rng.choice(ratios, size=(N_RESAMPLED, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}
