"""Several probes as arrays, so that what is done to one token or to one sequence is done once, not once a probe.

Every number is the one that `Probe` gives for each probe alone, to the last bit: the same operations in the same order.
P is the number of probes, n of tokens; columns stand in the order of the probes.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.sites import Float32
from pilothouse.probing.aggregation import Float64, ProbeStats, moving_averages, rolling_means
from pilothouse.probing.calibration import AnyCalibration, Isotonic, Platt, Rectified, interpolate, sigmoid
from pilothouse.probing.probe import Probe

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

_MAX_KEPT = 256


def surely_finite(values: Float32) -> bool:
    """Whether all numbers are finite; it may say that they are not where one is very large. For the few numbers of a
    token it takes a third of the time of a true answer."""
    flat = values.ravel()
    return math.isfinite(flat.dot(flat))


@dataclass(frozen=True, eq=False)
class _Curves:
    """The calibrations of P probes. a, b [P]: of those that are sigmoids, 1 and 0 of the others; rectified: columns,
    thresholds and units of activations; isotonic: columns and knots (x, y)."""

    a: Float64
    b: Float64
    rectified: tuple[Indices, Float64, Float64] | None
    isotonic: tuple[tuple[int, Float64, Float64], ...]

    @classmethod
    def of(cls, calibrations: Sequence[AnyCalibration | None]) -> "_Curves":
        a, b = np.ones(len(calibrations)), np.zeros(len(calibrations))
        rectified: list[tuple[int, Rectified]] = []
        isotonic: list[tuple[int, Float64, Float64]] = []
        for column, calibration in enumerate(calibrations):
            match calibration:
                case Platt():
                    a[column], b[column] = calibration.a, calibration.b
                case Rectified():
                    rectified.append((column, calibration))
                case Isotonic():
                    isotonic.append((column, np.array(calibration.x), np.array(calibration.y)))
        activations = None
        if rectified:
            columns = np.array([column for column, _ in rectified], dtype=np.intp)
            thresholds = np.array([found.threshold for _, found in rectified])
            activations = columns, thresholds, np.array([found.unit for _, found in rectified])
        return cls(a, b, activations, tuple(isotonic))

    def __call__(self, logits: Float64) -> Float64:
        """Scores of logits [n, P]; NaN stays NaN."""
        # Of a plain sigmoid a is 1 and b is 0, which changes nothing: a sigmoid does not tell -0 from 0.
        scores = sigmoid(self.a * logits + self.b)
        if self.rectified is not None:
            columns, thresholds, units = self.rectified
            mine = logits[:, columns]
            active = np.where(mine > thresholds, mine, 0.0) / units
            scores[:, columns] = np.where(np.isnan(mine), np.nan, active)
        for column, x, y in self.isotonic:
            scores[:, column] = interpolate(logits[:, column], x, y)
        return scores


class Panel:
    """What turns readouts of P probes into their scores. probes: they are not kept."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._offsets = np.array([probe.offset for probe in probes], dtype=np.float64)
        self._thresholds = np.array([probe.threshold for probe in probes], dtype=np.float64)
        self._high = np.array([probe.alarm == "high" for probe in probes], dtype=np.bool_)
        self._of_tokens = _Curves.of([probe.token_calibration for probe in probes])
        self._of_choices = _Curves.of([probe.calibration for probe in probes])
        self._aggregates = [probe.aggregate for probe in probes]

    def logits(self, raw: Float32) -> Float32:
        """Logits [n, P] of the engine's readouts [n, P]; NaN where they are not finite."""
        logits = (raw + self._offsets).astype(np.float32)
        if not surely_finite(logits):
            logits[~np.isfinite(logits)] = np.nan
        return logits

    def token_scores(self, logits: Float32) -> Float32:
        """Each token's own score [n, P] of logits [n, P]; NaN stays NaN."""
        return self._of_tokens(logits.astype(np.float64)).astype(np.float32)

    def past(self, scores: Float64) -> Bools:
        """Which of the scores [n, P] are past the thresholds, each on its alarm's side."""
        return np.where(self._high, scores > self._thresholds, scores < self._thresholds)

    def scores(self, stats: Sequence[ProbeStats]) -> list[float | None]:
        """Calibrated probability of the label for the whole choice, for each of the P statistics; None when what it
        rests on was not read."""
        logits = [getattr(found, aggregate) for found, aggregate in zip(stats, self._aggregates, strict=True)]
        # None becomes NaN, which no logit is.
        scores = self._of_choices(np.array([logits], dtype=np.float64))[0].tolist()
        return [None if logit is None else score for logit, score in zip(logits, scores, strict=True)]

    def flagged(self, scores: Sequence[float | None]) -> list[bool]:
        """Which of P scores are past the thresholds; one that is missing is not."""
        flagged: list[bool] = self.past(np.array([scores], dtype=np.float64))[0].tolist()
        return flagged

    def stats(self, logits: Float32, prompt_ends: Sequence[float | None]) -> list[ProbeStats]:
        """The statistics of generated tokens' logits [n, P], in order, NaN where a token was not scored, and of the
        prompt's last token [P]."""
        parts = [_Part.of(logits, columns, positions) for columns, positions in _alike(np.isfinite(logits))]
        flagged = self.past(self._of_choices(_averages(parts, logits.shape)))
        found: dict[int, ProbeStats] = {}
        for part in parts:
            columns = part.columns.tolist()
            ends = [prompt_ends[column] for column in columns]
            past = flagged[: len(part.positions), part.columns].T
            found.update(zip(columns, part.summaries(self._high, past, ends), strict=True))
        return [found.get(column) or ProbeStats(prompt_end=end) for column, end in enumerate(prompt_ends)]


@dataclass(frozen=True, eq=False)
class _Part:
    """Those of the probes that scored the same tokens, of which there is one at least: their columns [k], the tokens'
    positions [m], and the logits and their moving averages [k, m]."""

    columns: Indices
    positions: Indices
    rows: Float64
    averages: Float64

    @classmethod
    def of(cls, logits: Float32, columns: Indices, positions: Indices) -> "_Part":
        mine = logits if len(columns) == logits.shape[1] else logits[:, columns]
        # Each row lies in one piece: in which order NumPy sums it depends on that.
        rows = np.ascontiguousarray(mine[positions].T, dtype=np.float64)
        return cls(columns, positions, rows, moving_averages(rows))

    def summaries(self, high: Bools, flagged: Bools, prompt_ends: Sequence[float | None]) -> Iterator[ProbeStats]:
        """The statistics of each probe. high [P]; flagged [k, m]: by the moving average; prompt_ends [k]."""
        rows, averages, rolling = self.rows, self.averages, rolling_means(self.rows)
        mine = high[self.columns]
        firsts = self.positions[np.argmax(flagged, axis=1)].tolist()
        any_flagged: list[bool] = np.any(flagged, axis=1).tolist()
        fields: tuple[Sequence[Any], ...] = (
            rows[:, -1].tolist(),
            rows.mean(axis=1).tolist(),
            rows.min(axis=1).tolist(),
            rows.max(axis=1).tolist(),
            np.where(mine, averages.max(axis=1), averages.min(axis=1)).tolist(),
            np.where(mine, rolling.max(axis=1), rolling.min(axis=1)).tolist(),
            flagged.mean(axis=1).tolist(),
            [first if found else None for first, found in zip(firsts, any_flagged, strict=True)],
            prompt_ends,
        )
        return (ProbeStats(*values) for values in zip(*fields, strict=True))


def _averages(parts: Sequence[_Part], shape: tuple[int, ...]) -> Float64:
    """The moving averages of all probes, in columns, each from its first scored token on; NaN behind its last. shape:
    (n, P) of the logits."""
    if len(parts) == 1 and len(parts[0].columns) == shape[1]:
        return parts[0].averages.T
    averages = np.full(shape, np.nan)
    for part in parts:
        averages[: len(part.positions), part.columns] = part.averages.T
    return averages


def _alike(known: Bools) -> list[tuple[Indices, Indices]]:
    """The columns of `known` [n, P] that are the same, together, and where they are true, unless they are so nowhere.
    Mostly that is all columns: what is not finite at one probe hardly ever is at another."""
    if not known.any():
        return []
    if (known == known[:, :1]).all():
        return [(np.arange(known.shape[1]), np.flatnonzero(known[:, 0]))]
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    which = which.reshape(-1)
    found = ((np.flatnonzero(which == i), np.flatnonzero(pattern)) for i, pattern in enumerate(patterns.T))
    return [(columns, positions) for columns, positions in found if len(positions)]


_kept: dict[tuple[tuple[str, float], ...], Panel] = {}
_lock = threading.Lock()


def panel_of(probes: Sequence[Probe]) -> Panel:
    """The panel of these probes; those asked for of late are kept. Threads may share it."""
    # A version says all of a probe but the bits of its bias that a file does not keep.
    key = tuple((probe.version, probe.bias) for probe in probes)
    with _lock:
        # The least recently asked for stands first.
        panel = _kept.pop(key, None) or Panel(probes)
        _kept[key] = panel
        if len(_kept) > _MAX_KEPT:
            del _kept[next(iter(_kept))]
    return panel
