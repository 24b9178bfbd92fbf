"""Two ways to judge the same labelled choices, side by side, with how far the difference might be chance."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pilothouse.probing.aggregation import Float64
from pilothouse.probing.bootstrap import Clusters, Interval, draws, interval
from pilothouse.probing.metrics import Labels, bins_for, equal_mass

MEASURES = ("brier", "log_loss", "ece", "precision", "recall", "flagged")


@dataclass(frozen=True)
class Judged:
    """Choices [n] as one calibration and threshold see them; labels: 1 where the probe's label holds; bad: the alarm's
    case."""

    scores: Float64
    flagged: npt.NDArray[np.bool_]
    labels: Labels
    bad: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """A measure with its 95% bootstrap interval; None where nothing can be said, such as the precision of a threshold
    that flags nothing. An ECE has no interval: drawing adds noise to every bin, and the ECEs of draws lie above it."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Compared:
    """One measure before and after, and after less before."""

    before: Measured
    after: Measured
    difference: Measured


def compare(before: Judged, after: Judged, of_item: Clusters, seed: int) -> dict[str, Compared]:
    """Brier, log loss, ECE (bins of equal mass), precision and recall of bad choices, and the share flagged.

    The same draws of whole responses (`of_item` [n]) serve both sides, so that what they share is not counted as
    chance.
    """
    tables = [_Table.of(before), _Table.of(after)]
    once = np.ones((1, len(of_item)), dtype=np.int64)
    found = _both(tables, once)
    drawn = np.concatenate([_both(tables, times) for times in draws(of_item, seed)])
    n_units = int(of_item.max()) + 1
    compared = {}
    for k, name in enumerate(MEASURES):
        values = (None if np.isnan(value) else float(value) for value in found[0, :, k])
        rows = drawn[:, :, k].T
        ranges = [None if name == "ece" else interval(row[~np.isnan(row)], "response", n_units) for row in rows]
        compared[name] = Compared(*(Measured(*pair) for pair in zip(values, ranges, strict=True)))
    return compared


def log_losses(scores: Float64, labels: Labels) -> Float64:
    """-log of the probability that each score gives to its label; a certainty that was wrong is not infinite."""
    tiny = np.finfo(np.float64).eps
    sure = np.clip(scores, tiny, 1 - tiny)
    return np.asarray(-np.log(np.where(labels == 1, sure, 1 - sure)), dtype=np.float64)


@dataclass(frozen=True)
class _Table:
    """What is summed over choices [n], each as often as it was drawn: losses [n, 2], excess of score over label by bin
    [n, bins], and what is counted: flagged ones, bad ones, and both [n, 3]."""

    losses: Float64
    excess: Float64
    counted: Float64

    @classmethod
    def of(cls, judged: Judged) -> "_Table":
        scores, labels = judged.scores, judged.labels
        bins = bins_for(len(scores))
        inside = equal_mass(scores, bins)[:, None] == np.arange(bins)
        return cls(
            np.stack([(scores - labels) ** 2, log_losses(scores, labels)], axis=1),
            inside * (scores - labels)[:, None],
            np.stack([judged.flagged, judged.bad, judged.flagged & judged.bad], axis=1).astype(np.float64),
        )


def _both(tables: list[_Table], times: Clusters) -> Float64:
    """[draws, 3, measures]: before, after, and the difference; NaN where a measure is not defined."""
    before, after = (_measures(table, times.astype(np.float64)) for table in tables)
    return np.stack([before, after, after - before], axis=1)


def _measures(table: _Table, times: Float64) -> Float64:
    """[draws, measures] of choices that count so many `times` [draws, n]."""
    total = times.sum(axis=1, keepdims=True)
    losses = times @ table.losses / total
    ece = np.abs(times @ table.excess).sum(axis=1, keepdims=True) / total
    flagged, bad, caught = np.split(times @ table.counted, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [caught / flagged, caught / bad, flagged / total]
    return np.concatenate([losses, ece, *shares], axis=1)
