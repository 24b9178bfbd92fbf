"""How well scores tell two labels apart, and how honest they are as probabilities."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pilothouse.probing.aggregation import Alarm, Float64

BOOTSTRAP_DRAWS = 2_000
ECE_BINS = 15
_DRAWS_AT_ONCE = 100

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


def auroc_interval(scores: Float64, labels: Labels, seed: int) -> tuple[float, float]:
    """The middle 95% of the AUROC of 2,000 draws with replacement, each with as many items of each label as there are.

    To draw n items of a label is to draw how often each of them comes, so a draw is two multinomial rows of counts.
    """
    levels, place = np.unique(scores, return_inverse=True)
    share = {label: np.bincount(place[labels == label], minlength=len(levels)) for label in (0, 1)}
    n = {label: int(counts.sum()) for label, counts in share.items()}
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(0, BOOTSTRAP_DRAWS, _DRAWS_AT_ONCE):
        low, high = (rng.multinomial(n[label], share[label] / n[label], size=_DRAWS_AT_ONCE) for label in (0, 1))
        below = np.cumsum(low, axis=1) - low / 2
        found.append((high * below).sum(axis=1) / (n[0] * n[1]))
    lower, upper = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(lower), float(upper)


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


def reliability(scores: Float64, labels: Labels, bins: int = ECE_BINS) -> list[ReliabilityBin]:
    """Bins of equal mass: their edges are quantiles of the scores. Equal scores share a bin, and empty bins are left
    out."""
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1))
    of_item = np.searchsorted(edges[1:-1], scores)
    found = []
    for i in range(bins):
        inside = of_item == i
        if inside.any():
            mine = scores[inside]
            mean, observed = float(mine.mean()), float(np.mean(labels[inside] == 1))
            found.append(ReliabilityBin(float(mine.min()), float(mine.max()), int(inside.sum()), mean, observed))
    return found


def expected_calibration_error(table: list[ReliabilityBin]) -> float:
    """The mean over items of |mean score - observed share| of their bin (Naeini et al., 2015, with equal-mass bins)."""
    total = sum(row.n for row in table)
    return sum(row.n * abs(row.mean_score - row.observed) for row in table) / total


def brier(scores: Float64, labels: Labels) -> float:
    """The mean squared difference of score and label."""
    return float(np.mean((scores - labels) ** 2))
