"""Medians with their intervals, and straight lines through points."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

N_RESAMPLED = 4000


def median_of(ratios: npt.NDArray[np.float64], rng: np.random.Generator) -> dict[str, float]:
    """The median of ratios, one a round, and 95% of its bootstrap medians."""
    medians = np.median(rng.choice(ratios, size=(N_RESAMPLED, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def line_through(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    """Least squares: slope, intercept, and the share of the variance that the line explains."""
    slope, intercept = np.polyfit(xs, ys, 1)
    rest = np.array(ys) - (slope * np.array(xs) + intercept)
    spread = float(np.var(ys))
    explained = 1.0 - float(np.var(rest)) / spread if spread > 0 else 1.0
    return {"slope": float(slope), "intercept": float(intercept), "explained": explained}
