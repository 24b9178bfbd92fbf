"""A linear probe: a readout of the stream, folded for the engine, and everything that makes a score of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.artefact import check_fits
from pilothouse.core.directions import Direction
from pilothouse.core.sites import SITE, Float32, ModelShape
from pilothouse.probing.aggregation import Aggregate, Alarm, Float64, ProbeStats, summarise
from pilothouse.probing.calibration import AnyCalibration, Rectified, calibrate, logit_at
from pilothouse.probing.words import Levels, level_of

MEASURED = frozenset({"metrics", "reference_histogram"})
"""The keys of a card that hold measurements of the probe, as opposed to what it is."""


@dataclass(frozen=True, eq=False)
class Probe:
    """logit = bias + sum over layers of ((h - mean) / std) . weight; score = calibrated probability of `label`.

    weights, mean and std are rows [d_model] float32 by layer; a layer without mean or std is not centred or scaled.
    threshold is a score; `alarm` says which side of it is bad. `calibration` is for the aggregated logit and for the
    threshold, `token_calibration` for a token's own score; None means the plain sigmoid. levels: the words for scores,
    the default ones when None. card: the whole JSON card. adhoc: made for one request, so no metric has its name.
    """

    name: str
    label: str
    alarm: Alarm
    aggregate: Aggregate
    threshold: float
    weights: Mapping[int, Float32]
    bias: float = 0.0
    mean: Mapping[int, Float32] = field(default_factory=dict)
    std: Mapping[int, Float32] = field(default_factory=dict)
    calibration: AnyCalibration | None = None
    token_calibration: AnyCalibration | None = None
    model: str | None = None
    levels: Levels | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    adhoc: bool = False

    @cached_property
    def direction(self) -> Direction:
        """The folded rows weight / std, whose dot product with the stream the engine takes."""
        return Direction({layer: self._folded(layer) for layer in sorted(self.weights)})

    @cached_property
    def offset(self) -> float:
        """What is added to the engine's readout to make a logit: bias - sum of mean . (weight / std).

        The folded row enters as rounded to float32, so that its rounding cancels where the stream is near the mean.
        """
        rows = self.direction.layers
        parts = (self.mean[layer].astype(np.float64) @ rows[layer].astype(np.float64) for layer in sorted(self.mean))
        return self.bias - float(sum(parts))

    @cached_property
    def version(self) -> str:
        """``sha256:`` over tensors and card: the same before a probe is saved and after it is loaded.

        What was measured of the probe is left out: to measure it again does not change what it says of anything.
        """
        said = {key: value for key, value in self.full_card.items() if key not in MEASURED}
        card = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        sha = hashlib.sha256(card.encode())
        for name, row in sorted(self.tensors.items()):
            sha.update(f"|{name}:{len(row)}|".encode())
            sha.update(np.ascontiguousarray(row, dtype="<f4").tobytes())
        return f"sha256:{sha.hexdigest()}"

    @property
    def tensors(self) -> dict[str, Float32]:
        """The rows as a file has them: ``weight.{L}``, ``mean.{L}``, ``std.{L}`` and ``bias`` [1]."""
        kinds = {"weight": self.weights, "mean": self.mean, "std": self.std}
        rows = {f"{kind}.{layer}": row for kind, by_layer in kinds.items() for layer, row in by_layer.items()}
        return {**rows, "bias": np.array([self.bias], dtype=np.float32)}

    @property
    def watches_feature(self) -> bool:
        """Whether it is an SAE feature, whose score is an activation and no probability."""
        return isinstance(self.token_calibration, Rectified)

    @property
    def full_card(self) -> dict[str, Any]:
        """The card with the probe's own attributes taking precedence over what it came with."""
        card = {key: value for key, value in self.card.items() if key != "levels"}
        if self.levels is not None:
            card["levels"] = [level.model_dump(mode="json", exclude_none=True) for level in self.levels]
        return {
            **card,
            "format": 1,
            "kind": "probe",
            "name": self.name,
            "model": self.model,
            "site": SITE,
            "label": self.label,
            "alarm": self.alarm,
            "aggregate": self.aggregate,
            "threshold": self.threshold,
            "calibration": _dump(self.calibration),
            "token_calibration": _dump(self.token_calibration),
        }

    def check_fits(self, shape: ModelShape) -> None:
        """ArtefactError unless model, layers and width are the served model's."""
        widths = {layer: len(row) for layer, row in self.weights.items()}
        check_fits(f"probe {self.name!r}", self.model, widths, shape)

    def logits(self, raw: Float32) -> Float32:
        """Logits of the engine's readouts [n]; NaN stays NaN."""
        return (raw.astype(np.float64) + self.offset).astype(np.float32)

    def token_scores(self, logits: Float32) -> Float32:
        """Each token's own score [n]; NaN stays NaN."""
        return calibrate(self.token_calibration, logits).astype(np.float32)

    def raw_level(self, score: float, above: bool) -> float:
        """The engine's readout beyond which a token's own score is beyond `score`: greater than it when `above`, else
        less. Infinite where no token's score can be, or every one's is."""
        return logit_at(self.token_calibration, score, above) - self.offset

    def stats(self, logits: Float32, prompt_end: float | None) -> ProbeStats:
        """Statistics of the generated tokens' logits [n], in order, NaN where a token was not scored.

        A token is flagged when the score of the moving average at it is past the threshold.
        """
        return summarise(
            logits, prompt_end, self.alarm, lambda average: self._past(calibrate(self.calibration, average))
        )

    def score(self, stats: ProbeStats) -> float | None:
        """Calibrated probability of `label` for the whole choice; None when what it rests on was not read."""
        logit: float | None = getattr(stats, self.aggregate)
        return None if logit is None else float(calibrate(self.calibration, logit))

    def flagged(self, score: float) -> bool:
        """Whether `score` is past the threshold on the alarm's side."""
        return bool(self._past(np.asarray(score, dtype=np.float64)))

    def level(self, score: float | None) -> str | None:
        """The word for `score`; None where there is no score, and of activations, which are no probabilities."""
        if score is None or self.watches_feature:
            return None
        return level_of(self.levels, self.alarm, score)

    def _past(self, scores: Float64) -> npt.NDArray[np.bool_]:
        return np.asarray(scores > self.threshold if self.alarm == "high" else scores < self.threshold)

    def _folded(self, layer: int) -> Float32:
        weight = self.weights[layer]
        if layer not in self.std:
            return weight
        return (weight.astype(np.float64) / self.std[layer].astype(np.float64)).astype(np.float32)


def _dump(calibration: AnyCalibration | None) -> dict[str, Any] | None:
    return None if calibration is None else calibration.model_dump(mode="json")
