"""How far a measure might be from what it would be on other items of the same kind.

Items about one fact or entity stand or fall together, so whole groups are drawn: to draw single items would count each
wording as news and make the interval too narrow (the cluster bootstrap; Field & Welsh, 2007).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pilothouse.probing.aggregation import Float64
from pilothouse.probing.metrics import Labels

DRAWS = 2_000
FEWEST_TOPICS = 5
"""With fewer topics, what they would be drawn to says nothing of others, and items are drawn."""

FEWEST_USABLE = 0.6
"""Share of draws that must have a measure: of the AUROC, those that hold both labels."""

_DRAWS_AT_ONCE = 50

Unit = Literal["group", "topic", "item", "response"]
Clusters = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """The middle 95% of a measure of draws with replacement of `n_units` units; draws without the measure, such as the
    AUROC of one label, are left out."""

    low: float
    high: float
    unit: Unit
    n_units: int


def clusters(
    groups: Sequence[str | None], topics: Sequence[str | None], identities: Sequence[str]
) -> tuple[Unit, Clusters]:
    """What is drawn, and the number of each item's [items]: its group where any item has one, or else its topic where
    all have one of at least five, or else the item itself, the same words being one.

    An item without a group, where others have one, is a group of its own.
    """
    if any(group is not None for group in groups):
        names = [f"group {group}" if group is not None else own for group, own in zip(groups, identities, strict=True)]
        return "group", _numbered(names)
    known = [topic for topic in topics if topic is not None]
    if len(known) == len(topics) and len(set(known)) >= FEWEST_TOPICS:
        return "topic", _numbered(known)
    return "item", _numbered(identities)


def auroc_interval(scores: Float64, labels: Labels, unit: Unit, of_item: Clusters, seed: int) -> Interval | None:
    """The interval of the AUROC of scores [items] when the clusters `of_item` are drawn 2,000 times; None when too few
    of the draws hold both labels for its ends to mean anything (of two units, every other draw).

    A drawn cluster counts as often as it was drawn, ties count half, as in the AUROC itself.
    """
    order = np.argsort(scores, kind="stable")
    labels, of_item = labels[order], of_item[order]
    _, starts = np.unique(scores[order], return_index=True)
    found: list[Float64] = []
    for times in draws(of_item, seed):
        low, high = (np.add.reduceat(times * (labels == label), starts, axis=1) for label in (0, 1))
        pairs = (low.sum(axis=1) * high.sum(axis=1)).astype(np.float64)
        won = (high * (np.cumsum(low, axis=1) - low / 2)).sum(axis=1)
        found.append(won[pairs > 0] / pairs[pairs > 0])
    return interval(np.concatenate(found), unit, int(of_item.max()) + 1)


def draws(of_item: Clusters, seed: int) -> Iterator[Clusters]:
    """How often each item counts [some draws, items], in 2,000 draws of the clusters `of_item` altogether."""
    n_units = int(of_item.max()) + 1
    rng = np.random.default_rng(seed)
    for _ in range(0, DRAWS, _DRAWS_AT_ONCE):
        yield rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=_DRAWS_AT_ONCE)[:, of_item]


def interval(measured: Float64, unit: Unit, n_units: int) -> Interval | None:
    """The middle of what the draws that have the measure gave; None when they are too few."""
    if len(measured) < FEWEST_USABLE * DRAWS:
        return None
    lower, upper = np.quantile(measured, [0.025, 0.975])
    return Interval(float(lower), float(upper), unit, n_units)


def _numbered(names: Sequence[str]) -> Clusters:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
