"""Rounds of a scenario: every variant once, in random order, and from them a pair for each comparison.

What several comparisons stand beside is measured once for all of them. The machine drifts, so a ratio is of two bursts
of the same round. Every burst has prompts that the prefix cache of its server has not seen.
"""

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rich.progress import track

from pilothouse.cli.bench.journal import Journal, Line
from pilothouse.cli.bench.scenarios import Comparison, Scenario
from pilothouse.cli.bench.variants import Variant

Side = Callable[[Variant, str], Awaitable[Mapping[str, Any]]]
"""Measures a variant once, with requests made from a seed."""
Room = Callable[[], float]
"""Seconds that are left for rounds."""

SIDES = ("variant", "beside")
LEAST_ROUNDS = 3
"""Rounds that are made however long they take: of fewer, medians and intervals say nothing."""


def endless() -> float:
    """All the time that rounds may want."""
    return math.inf


def variants_of(comparisons: Sequence[Comparison], number: int = 0) -> list[Variant]:
    """What round `number` measures: both sides of all comparisons that have so many pairs, each variant once."""
    sides = {side.name: side for c in comparisons if number < c.pairs for side in (c.beside, c.variant)}
    return list(sides.values())


def bursts_of(comparisons: Sequence[Comparison]) -> int:
    """How many bursts all rounds have together."""
    rounds = max((c.pairs for c in comparisons), default=0)
    return sum(len(variants_of(comparisons, number)) for number in range(rounds))


def prompts_of(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """Which of a round's sets of prompts each variant gets, by its name: no server gets one of them twice, and a
    variant has that of what it stands beside where its server has not had it."""
    found: dict[str, int] = {}
    taken: set[tuple[str, int]] = set()
    for comparison in comparisons:
        for side in (comparison.beside, comparison.variant):
            if side.name not in found:
                liked = found.get(comparison.beside.name, 0)
                free = (n for n in (liked, *range(len(taken) + 1)) if (side.server, n) not in taken)
                found[side.name] = next(free)
                taken.add((side.server, found[side.name]))
    return found


async def measure_rounds(
    kind: str,
    scenario: Scenario,
    comparisons: Sequence[Comparison],
    side: Side,
    journal: Journal,
    seed: int,
    room: Room = endless,
) -> None:
    """Measure the rounds that the journal has not got whole, as many as there is room for and LEAST_ROUNDS at least.

    A round that was interrupted is measured anew: its bursts before and after would be of different starts of a
    server, and these differ by more than what is to be measured.
    """
    sets = prompts_of(comparisons)
    seconds, bursts = 0.0, 0
    for number in track(
        range(max((c.pairs for c in comparisons), default=0)), description=f"{scenario.name}, {kind}s", transient=True
    ):
        keys = {c.name: _key(kind, scenario, c, number) for c in comparisons if number < c.pairs}
        missing = [c for c in comparisons if c.name in keys and not journal.done(**keys[c.name])]
        variants = variants_of(missing, number)
        if bursts and number >= LEAST_ROUNDS and room() < len(variants) * seconds / bursts:
            return
        begin = time.monotonic()
        name = f"{seed}/{kind}/{scenario.name}/{number}"
        order = random.Random(name).sample(variants, len(variants))
        found = {variant.name: await side(variant, f"{name}/{sets[variant.name]}") for variant in order}
        seconds, bursts = seconds + time.monotonic() - begin, bursts + len(variants)
        for comparison in missing:
            journal.add({**keys[comparison.name], **_pair(comparison, found)})


def _key(kind: str, scenario: Scenario, comparison: Comparison, number: int) -> Line:
    return {"scenario": scenario.name, "kind": kind, "comparison": comparison.name, "number": number}


def _pair(comparison: Comparison, found: Mapping[str, Mapping[str, Any]]) -> Line:
    """The two sides of a comparison out of a round. found: what was measured by the variant's name, in its order."""
    names = dict(zip(SIDES, (comparison.variant.name, comparison.beside.name), strict=True))
    order = list(found)
    turns = {side: order.index(name) for side, name in names.items()}
    first = min(SIDES, key=lambda side: turns[side])
    measured = {side: found[name] for side, name in names.items()}
    return {"latency": comparison.latency, "first": first, "turns": turns, **measured}
