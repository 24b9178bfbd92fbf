"""How well scores tell two labels apart, and how honest they are as probabilities."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pilothouse.probing.aggregation import Alarm, Float64

MOST_BINS = 15
FEWEST_PER_BIN = 10

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Of `n` items whose scores lie from `low` to `high`: the mean score, and the share that has the label."""

    low: float
    high: float
    n: int
    mean_score: float
    observed: float


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does: the share of the bad items and of the benign ones that it flags."""

    recall: float
    fpr: float


def auroc(scores: npt.ArrayLike, labels: Labels) -> float:
    """Area under the ROC curve: how often an item of label 1 scores above one of label 0, ties counting half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def auroc_or_none(scores: npt.ArrayLike, labels: Labels) -> float | None:
    """`auroc`, or None of items that are all of one label, or none."""
    return auroc(scores, labels) if set(labels.tolist()) == {0, 1} else None


def badness(scores: Float64, labels: Labels, alarm: Alarm) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """Scores that rise towards the alarm, and which items are bad: those of label 1 when it is high, else of 0."""
    return (scores, labels == 1) if alarm == "high" else (-scores, labels == 0)


def recall_at(scores: Float64, labels: Labels, alarm: Alarm, fpr: float) -> OperatingPoint:
    """The most bad items that any threshold on these very scores flags with at most `fpr` of the benign ones."""
    towards, bad = badness(scores, labels, alarm)
    cutoff = cutoff_at(towards[~bad], fpr)
    return OperatingPoint(float(np.mean(towards[bad] > cutoff)), float(np.mean(towards[~bad] > cutoff)))


def cutoff_at(benign: Float64, fpr: float) -> float:
    """The lowest of the `benign` numbers that at most `fpr` of them are above."""
    # The product may fall short of a whole number by a rounding error.
    allowed = int(fpr * len(benign) + 1e-9)
    return float(np.sort(benign)[::-1][allowed]) if allowed < len(benign) else -np.inf


def bins_for(n_items: int) -> int:
    """15 bins, or fewer where they would hold less than ten items each: the share in a bin of one is 0 or 1, and would
    be called a miscalibration of the best of probes."""
    return min(MOST_BINS, max(1, n_items // FEWEST_PER_BIN))


def reliability(scores: Float64, labels: Labels, bins: int) -> list[ReliabilityBin]:
    """Bins of equal mass: their edges are quantiles of the scores. Equal scores share a bin, and empty bins are left
    out."""
    of_item = equal_mass(scores, bins)
    found = []
    for i in range(bins):
        inside = of_item == i
        if inside.any():
            mine = scores[inside]
            mean, observed = float(mine.mean()), float(np.mean(labels[inside] == 1))
            found.append(ReliabilityBin(float(mine.min()), float(mine.max()), int(inside.sum()), mean, observed))
    return found


def equal_mass(scores: Float64, bins: int) -> npt.NDArray[np.int64]:
    """Of each score the number of its bin [items]."""
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1))
    return np.searchsorted(edges[1:-1], scores)


def expected_calibration_error(table: list[ReliabilityBin]) -> float:
    """The mean over items of |mean score - observed share| of their bin (Naeini et al., 2015, with equal-mass bins)."""
    total = sum(row.n for row in table)
    return sum(row.n * abs(row.mean_score - row.observed) for row in table) / total


def brier(scores: Float64, labels: Labels) -> float:
    """The mean squared difference of score and label."""
    return float(np.mean((scores - labels) ** 2))
