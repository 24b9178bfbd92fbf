"""Many tokens, one number: how the logits of a choice's tokens become a score.

Plain mean and plain maximum are known to fail (dilution in long texts; one noisy token), hence the moving averages:
Constitutional Classifiers++ (EMA of logits) and long-context production probes (rolling mean).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pilothouse.core.sites import Float32

Alarm = Literal["high", "low"]
Aggregate = Literal["last", "mean", "min", "max", "worst_ema", "worst_rolling", "prompt_end"]

EMA_ALPHA = 0.5
ROLLING_WINDOW = 16
# A power of two. Beyond 64 tokens a logit weighs 2**-64 of the average: less than a float64 can show.
_EMA_TAPS = 64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProbeStats:
    """What one probe read on one choice: logits, but for the share and the index of flagged tokens.

    All but `prompt_end` are None when no generated token was scored; `worst` is the extreme towards the alarm;
    `first_flagged` counts generated tokens, unscored ones included.
    """

    last: float | None = None
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    worst_ema: float | None = None
    worst_rolling: float | None = None
    fraction_flagged: float | None = None
    first_flagged: int | None = None
    prompt_end: float | None = None


def moving_average(logits: Float64) -> Float64:
    """Exponential moving average that starts at the first logit: e[0] = z[0], e[t] = z[t] / 2 + e[t-1] / 2."""
    averages: Float64 = moving_averages(logits[None])[0]
    return averages


def rolling_mean(logits: Float64) -> Float64:
    """Mean of the last 16 logits at each token, of fewer where there are not yet 16."""
    sums = np.concatenate([[0.0], np.cumsum(logits)])
    ends = np.arange(1, len(logits) + 1)
    starts = np.maximum(ends - ROLLING_WINDOW, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), dtype=np.float64)


def moving_averages(rows: Float64) -> Float64:
    """`moving_average` of each of the rows [k, n], to the last bit."""
    k, n = rows.shape
    if not k or not n:
        return rows
    # To start at z[0] is to have seen z[0] for ever, which makes the recursion a weighted sum of a fixed length.
    sums = np.concatenate([np.repeat(rows[:, :1], _EMA_TAPS - 1, axis=1), rows], axis=1)
    taps = 1
    while taps < _EMA_TAPS:
        # The sum over as many tokens again before these, each of which weighs less by the same factor.
        sums[:, taps:] += (1 - EMA_ALPHA) ** taps * sums[:, :-taps]
        taps *= 2
    return np.asarray(EMA_ALPHA * sums[:, -n:], dtype=np.float64)


def rolling_means(rows: Float64) -> Float64:
    """`rolling_mean` of each of the rows [k, n], to the last bit."""
    sums = np.cumsum(rows, axis=1)
    within = sums.copy()
    within[:, ROLLING_WINDOW:] -= sums[:, :-ROLLING_WINDOW]
    within /= np.minimum(np.arange(1, rows.shape[1] + 1), ROLLING_WINDOW)
    return np.asarray(within, dtype=np.float64)


def summarise(
    logits: Float32, prompt_end: float | None, alarm: Alarm, flag: Callable[[Float64], npt.NDArray[np.bool_]]
) -> ProbeStats:
    """The statistics of generated tokens' logits [n], in order; one that is not a finite number was not scored.

    `flag` says which logits are past the threshold; it is asked about the moving average.
    """
    positions = np.flatnonzero(np.isfinite(logits))
    if not len(positions):
        return ProbeStats(prompt_end=prompt_end)
    scored = logits[positions].astype(np.float64)
    worst = np.max if alarm == "high" else np.min
    average = moving_average(scored)
    flagged = flag(average)
    return ProbeStats(
        last=float(scored[-1]),
        mean=float(scored.mean()),
        min=float(scored.min()),
        max=float(scored.max()),
        worst_ema=float(worst(average)),
        worst_rolling=float(worst(rolling_mean(scored))),
        fraction_flagged=float(flagged.mean()),
        first_flagged=int(positions[np.argmax(flagged)]) if flagged.any() else None,
        prompt_end=prompt_end,
    )


def support(logits: Float64, aggregate: Aggregate, alarm: Alarm) -> Float64:
    """Weights [n] by which the logits [n], all finite and n > 0, sum to their aggregate.

    Where the worst is taken, they are those of the token (or of its average) that is worst. ValueError for
    `prompt_end`, which is no sum of generated tokens' logits.
    """
    n = len(logits)
    worst = np.argmax if alarm == "high" else np.argmin
    match aggregate:
        case "mean":
            return np.full(n, 1 / n)
        case "last":
            return _one(n, n - 1)
        case "min" | "max":
            return _one(n, int(np.argmin(logits) if aggregate == "min" else np.argmax(logits)))
        case "worst_ema":
            return _ema_weights(n, int(worst(moving_average(logits))))
        case "worst_rolling":
            at = int(worst(rolling_mean(logits)))
            weights = np.zeros(n)
            weights[max(0, at - ROLLING_WINDOW + 1) : at + 1] = 1 / min(at + 1, ROLLING_WINDOW)
            return weights
        case "prompt_end":
            raise ValueError("prompt_end is read before the generated tokens")


def _one(n: int, at: int) -> Float64:
    weights = np.zeros(n)
    weights[at] = 1
    return weights


def _ema_weights(n: int, at: int) -> Float64:
    """What each of n logits weighs in the moving average at one of them: the first has the weight of all before it."""
    weights = np.zeros(n)
    weights[: at + 1] = EMA_ALPHA * (1 - EMA_ALPHA) ** np.arange(at, -1, -1.0)
    weights[0] = (1 - EMA_ALPHA) ** at
    return weights
