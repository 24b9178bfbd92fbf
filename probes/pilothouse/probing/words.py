"""Words for people: how confident a score is, by the card's levels, and which tokens it rests on."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pilothouse.core.sites import Float32
from pilothouse.probing.aggregation import Aggregate, Alarm, Float64, support

MAX_REASONS = 5


class Level(BaseModel):
    """A word for every confidence from `at_least` up to where the level before it begins; None reaches down to 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S")]
    at_least: Annotated[float, Field(ge=0, le=1)] | None = None


Levels = tuple[Level, ...]

DEFAULT_LEVELS: Levels = (
    Level(name="high", at_least=0.9),
    Level(name="moderate", at_least=0.7),
    Level(name="low", at_least=0.5),
    Level(name="very low"),
)


def check_levels(levels: Levels) -> Levels:
    """`levels` when every confidence has exactly one of them, else ValueError."""
    if not levels:
        raise ValueError("there must be a level")
    *upper, last = levels
    bounds = [level.at_least for level in upper if level.at_least is not None]
    if last.at_least is not None or len(bounds) < len(upper):
        raise ValueError("every level but the last, and it alone not, has at_least")
    if any(after >= before for before, after in pairwise(bounds)):
        raise ValueError("the bounds at_least must decrease from level to level")
    if len({level.name for level in levels}) < len(levels):
        raise ValueError("two levels have one name")
    return levels


def level_of(levels: Levels | None, alarm: Alarm, score: float) -> str:
    """The word for a score, a probability: of the good case when the alarm is low, else of the bad one.

    Levels are of the confidence that the good case holds. None: the default ones.
    """
    confidence = score if alarm == "low" else 1 - score
    fitting = (level for level in levels or DEFAULT_LEVELS if level.at_least is None or confidence >= level.at_least)
    return next(fitting).name


def tellings(scores: Float32, logits: Float32, probes: Sequence[tuple[Aggregate, Alarm, float]]) -> list[list[int]]:
    """Which of a flagged choice's generated tokens say why, the worst first, at most five, by each of k probes.

    scores [k, n]: the tokens' own; NaN where there is none, as in logits [k, n]; probes: aggregate, alarm and threshold
    of each. They are those past the threshold by themselves. Where none is, since the calibration of tokens is not that
    of choices, and where the aggregate is of one token whatever the others are, they are those that draw the aggregate
    most to where it is. ValueError for `prompt_end`, which no generated token tells of.
    """
    signs = np.array([[1.0 if alarm == "high" else -1.0] for _, alarm, _ in probes])
    bounds = signs * np.array([[threshold] for *_, threshold in probes])
    badness = signs * scores.astype(np.float64)
    # What is not known is past nothing.
    beyond = _worst(np.where(badness > bounds, badness, -np.inf))
    return [
        _drawn(badness[k], logits[k], aggregate, alarm) if _of_one(aggregate, alarm) or not beyond[k] else beyond[k]
        for k, (aggregate, alarm, _) in enumerate(probes)
    ]


def _worst(badness: Float64) -> list[list[int]]:
    """In each row of [k, n], where the greatest entries are, at most five, the greatest first; -inf is none."""
    rows, (k, n) = np.arange(len(badness)), badness.shape
    places = np.empty((min(MAX_REASONS, n), k), dtype=np.intp)
    there = np.empty(places.shape, dtype=np.bool_)
    for place in range(len(places)):
        places[place] = badness.argmax(axis=1)
        there[place] = badness[rows, places[place]] > -np.inf
        badness[rows, places[place]] = -np.inf
    of_rows = zip(places.T.tolist(), there.sum(axis=0).tolist(), strict=True)
    return [found[:known] for found, known in of_rows]


def _drawn(badness: Float64, logits: Float32, aggregate: Aggregate, alarm: Alarm) -> list[int]:
    """Those of the tokens [n] that draw the aggregate most to where it is, the worst by their own scores first."""
    known = np.flatnonzero(np.isfinite(badness))
    read = logits[known].astype(np.float64)
    drawing = known[_drawing(read if alarm == "high" else -read, support(read, aggregate, alarm))]
    found: list[int] = drawing[(-badness[drawing]).argsort(kind="stable")].tolist()
    return found


def past(score: float, alarm: Alarm, threshold: float) -> float:
    """How far a score is past the threshold on the alarm's side; below 0 on the other."""
    return score - threshold if alarm == "high" else threshold - score


def _of_one(aggregate: Aggregate, alarm: Alarm) -> bool:
    """Whether other tokens could have been as bad, or worse, without a part in the score."""
    return aggregate in ("last", "min" if alarm == "high" else "max")


def _drawing(badness: Float64, weights: Float64) -> npt.NDArray[np.int64]:
    """Of tokens [n] with weights that sum to 1, at most five that are as bad as the weighted mean, or worse: those that
    add most to it."""
    mean = float(weights @ badness)
    # One token is always as bad as the mean, but for how the mean is rounded.
    chosen = np.flatnonzero((weights > 0) & (badness >= mean - 1e-6 * max(1.0, abs(mean))))
    added = weights[chosen] * (badness[chosen] - mean)
    return chosen[np.argsort(-added, kind="stable")[:MAX_REASONS]]
