"""How good a live probe is, from counts of labelled records alone: what gauges show.

Bad is the alarm's side: the probe's label holds and its alarm is high, or does not hold and its alarm is low.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pilothouse.probing.aggregation import Alarm

BINS = 10


@dataclass(frozen=True)
class ScoreBin:
    """Labelled records of which the score lies in one of ten bins of equal width: how many, the sum of their scores,
    and of how many of them the probe's label holds."""

    n: int
    total: float
    n_holds: int


@dataclass(frozen=True)
class Quality:
    """precision: the share of bad ones among the flagged; recall: the share of flagged ones among the bad;
    calibration_error: the mean over records of the difference of mean score and share that holds in their bin (ECE,
    Naeini et al., 2015). None where there is nothing to take a share of. n: labelled records."""

    precision: float | None
    recall: float | None
    calibration_error: float | None
    n: int


def bin_of(score: float) -> int:
    """The number of a score's bin; 1 belongs to the last one, and so does what is beyond it."""
    return max(0, min(int(score * BINS), BINS - 1))


def quality(counts: Mapping[tuple[bool, bool], int], bins: Sequence[ScoreBin], alarm: Alarm) -> Quality:
    """From counts by (flagged, value), where value says whether the probe's label holds, and bins by score."""
    bad = alarm == "high"
    caught, missed = counts.get((True, bad), 0), counts.get((False, bad), 0)
    flagged = caught + counts.get((True, not bad), 0)
    binned = sum(row.n for row in bins)
    error = sum(abs(row.total - row.n_holds) for row in bins)
    return Quality(
        precision=caught / flagged if flagged else None,
        recall=caught / (caught + missed) if caught + missed else None,
        calibration_error=error / binned if binned else None,
        n=sum(counts.values()),
    )
