"""Which strengths to try, and which of them to recommend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pilothouse.steering.vector import Vector

MAX_ACCURACY_LOSS = 0.03
MAX_PERPLEXITY_RISE = 0.10
LEAST_SHARE_OF_GAIN = 0.5
LEAST_GAIN = 0.05
"""A twentieth of the prompts: fewer may come and go by chance."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Effect:
    """What one strength does: share of answers with the effect, share of facts right, perplexity of neutral texts."""

    strength: float
    effect: float
    accuracy: float
    perplexity: float


@dataclass(frozen=True)
class Recommendation:
    """Lowest and highest strength of the range, or None, and why."""

    range: tuple[float, float] | None
    reason: str


def default_strengths(vector: Vector, layers: Sequence[int]) -> list[float]:
    """0 and, on both sides of it, five strengths that double from one to the next.

    The middle one is the largest that the card recommends; without a recommendation, that which adds a quarter of the
    stream's mean norm at the layers in use (so that the largest adds all of it); without norms, 1.
    """
    rows = vector.direction.layers
    lengths = {layer: float(np.linalg.norm(rows[layer].astype(np.float64))) for layer in layers}
    ratios = [
        vector.resid_norm[layer] / length
        for layer, length in lengths.items()
        if length > 0 and vector.resid_norm.get(layer, 0.0) > 0
    ]
    if vector.recommended is not None and any(vector.recommended):
        middle = max(abs(end) for end in vector.recommended)
    elif ratios:
        middle = 0.25 * float(np.mean(ratios))
    else:
        middle = 1.0
    steps = [float(f"{middle * factor:.3g}") for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    return [-step for step in reversed(steps)] + [0.0] + steps


def recommend(points: Sequence[Effect]) -> Recommendation:
    """The largest contiguous range of strengths that work and do little harm. None is made up where there is none.

    A strength qualifies when (1) fact accuracy is at most 3 points below that at strength 0; (2) the perplexity is at
    most 10% above that at strength 0; (3) its effect's gain over strength 0 is 5 points or more, and at least half of
    the best gain of all strengths that qualify by (1) and (2). Strengths are contiguous when no strength tried between
    them fails to qualify. The largest range has the most strengths, then is the widest, then gains most on the whole,
    then is nearest to 0. `points` must hold strength 0, once.
    """
    ordered = sorted(points, key=lambda point: point.strength)
    zero = next(point for point in ordered if point.strength == 0)
    if max(point.effect - zero.effect for point in ordered) < LEAST_GAIN - _ROUNDING:
        return Recommendation(None, "no strength has more of the effect than strength 0, by 5 points or more")
    best = max((point.effect - zero.effect for point in ordered if _harmless(point, zero)), default=0.0)
    if best < LEAST_GAIN - _ROUNDING:
        return Recommendation(None, "every strength that has the effect costs too much accuracy or perplexity")
    runs: list[list[Effect]] = [[]]
    for point in ordered:
        if _effective(point, zero, best) and _harmless(point, zero):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    found = [run for run in runs if run]
    run = max(found, key=lambda run: _size(run, zero))
    ends = (run[0].strength, run[-1].strength)
    reason = f"{len(run)} of {len(ordered)} strengths: half of the best harmless gain or more, little harm"
    return Recommendation(ends, reason)


def _effective(point: Effect, zero: Effect, best: float) -> bool:
    return point.effect - zero.effect >= max(LEAST_SHARE_OF_GAIN * best, LEAST_GAIN) - _ROUNDING


def _harmless(point: Effect, zero: Effect) -> bool:
    # Written so that a perplexity that is not a number does not pass.
    return (
        point.accuracy >= zero.accuracy - MAX_ACCURACY_LOSS - _ROUNDING
        and point.perplexity <= zero.perplexity * (1 + MAX_PERPLEXITY_RISE) + _ROUNDING
    )


def _size(run: Sequence[Effect], zero: Effect) -> tuple[float, float, float, float]:
    width = run[-1].strength - run[0].strength
    return len(run), width, sum(point.effect - zero.effect for point in run), -abs(run[0].strength + run[-1].strength)
