"""From logits to probabilities: Platt scaling (Platt, 1999), isotonic regression, or the plain sigmoid.

Every calibration rises with the logit, so the worst logit has the worst score.
"""

import math
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pilothouse.core.errors import ArtefactError

Float64 = npt.NDArray[np.float64]

_LARGEST_LOGIT = 1e6
_LOGIT_PRECISION = 1e-9

_CONFIG = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Platt(BaseModel):
    """sigmoid(a * logit + b)."""

    model_config = _CONFIG

    kind: Literal["platt"] = "platt"
    a: Annotated[float, Field(gt=0)]
    b: float

    def apply(self, logits: Float64) -> Float64:
        """Probabilities of the probe's label; NaN stays NaN."""
        return sigmoid(self.a * logits + self.b)


class Isotonic(BaseModel):
    """Linear between the knots (x, y), constant beyond the outermost."""

    model_config = _CONFIG

    kind: Literal["isotonic"] = "isotonic"
    x: Annotated[tuple[float, ...], Field(min_length=1)]
    y: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} knots in x but {len(self.y)} in y")
        if any(b <= a for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("the knots in x must increase")
        if any(b < a for a, b in zip(self.y, self.y[1:], strict=False)):
            raise ValueError("the knots in y must not decrease")
        return self

    def apply(self, logits: Float64) -> Float64:
        """Probabilities of the probe's label; NaN stays NaN."""
        return interpolate(logits, np.array(self.x), np.array(self.y))


class Rectified(BaseModel):
    """The activation of an SAE feature, in units of `unit`: the logit where it is above `threshold`, else 0."""

    model_config = _CONFIG

    kind: Literal["rectified"] = "rectified"
    threshold: Annotated[float, Field(ge=0)]
    unit: Annotated[float, Field(gt=0)]

    def apply(self, logits: Float64) -> Float64:
        """Activations, which are not bounded by 1; NaN stays NaN."""
        active = np.where(logits > self.threshold, logits, 0.0) / self.unit
        return np.asarray(np.where(np.isnan(logits), np.nan, active), dtype=np.float64)


AnyCalibration = Platt | Isotonic | Rectified

CalibrationKind = Literal["platt", "isotonic"]
Calibration = Annotated[Platt | Isotonic, Field(discriminator="kind")]


def calibrate(calibration: AnyCalibration | None, logits: npt.ArrayLike) -> Float64:
    """Scores of `logits`, by `calibration` or else the plain sigmoid; in [0, 1] but for activations."""
    wide = np.asarray(logits, dtype=np.float64)
    return sigmoid(wide) if calibration is None else calibration.apply(wide)


def logit_at(calibration: AnyCalibration | None, score: float, above: bool) -> float:
    """The logit beyond which calibrated scores are beyond `score`: greater than it when `above`, else less.

    Found by halving, since every calibration rises with the logit; infinite where no logit has such a score, or all.
    """

    def beyond(logit: float) -> bool:
        found = float(calibrate(calibration, logit))
        return found > score if above else found < score

    near, far = (-_LARGEST_LOGIT, _LARGEST_LOGIT) if above else (_LARGEST_LOGIT, -_LARGEST_LOGIT)
    if beyond(near):
        return math.copysign(math.inf, near)
    if not beyond(far):
        return math.copysign(math.inf, far)
    while abs(far - near) > _LOGIT_PRECISION * max(1.0, abs(near)):
        middle = (near + far) / 2
        near, far = (near, middle) if beyond(middle) else (middle, far)
    return near


def interpolate(logits: Float64, x: Float64, y: Float64) -> Float64:
    """Linear between the knots (x, y), constant beyond the outermost; NaN stays NaN."""
    found = np.interp(logits, x, y)
    # Where there is one knot only, NumPy takes NaN for it.
    return found if len(x) > 1 else np.where(np.isnan(logits), np.nan, found)


def sigmoid(logits: Float64) -> Float64:
    """1 / (1 + exp(-logits)); NaN, which stands for what was not scored, stays NaN."""
    # Where the exponential is beyond all numbers, its reciprocal is 0, as it should be.
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float64)


def fit_platt(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Platt:
    """Maximum likelihood with Platt's smoothed targets, which keep `a` finite on separable data.

    ArtefactError when the labels do not rise with the logits: no calibration can make such a probe useful.
    """
    # Slow to import, and a server never fits.
    from sklearn.linear_model import LogisticRegression

    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    scale = float(x.std())
    if scale == 0.0:
        raise ArtefactError("the probe gives every calibration item the same score")
    n_positive, n_negative = int((y == 1).sum()), int((y == 0).sum())
    target = np.where(y == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    # A soft target is an item of each label, weighted; the penalty at this C is nil beside the likelihood.
    unit = ((x - x.mean()) / scale)[:, None]
    model = LogisticRegression(C=1e9, solver="newton-cholesky", max_iter=1000)
    model.fit(
        np.concatenate([unit, unit]),
        np.concatenate([np.ones(len(x)), np.zeros(len(x))]),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    a = float(model.coef_[0, 0]) / scale
    if a <= 0:
        raise ArtefactError("the probe does not tell the labels of the calibration items apart")
    return Platt(a=a, b=float(model.intercept_[0]) - a * float(x.mean()))


def fit_isotonic(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Isotonic:
    """The non-decreasing step towards the labels with the least squared error, linear between its knots.

    It ends at Platt's smoothed targets and not at 0 and 1: no item beyond the last of the other label is a certainty,
    and the fewer there are the less. ArtefactError when the labels do not rise with the logits at all.
    """
    # Slow to import, and a server never fits.
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip")
    truth = np.asarray(labels, dtype=np.float64)
    fitted.fit(np.asarray(logits, dtype=np.float64), truth)
    lowest, highest = 1 / ((truth == 0).sum() + 2), ((truth == 1).sum() + 1) / ((truth == 1).sum() + 2)
    x, y = fitted.X_thresholds_, np.clip(np.maximum.accumulate(fitted.y_thresholds_), lowest, highest)
    if y[-1] <= y[0]:
        raise ArtefactError("the probe does not tell the labels of the calibration items apart")
    return Isotonic(x=tuple(x.tolist()), y=tuple(y.tolist()))


def fit_calibration(kind: CalibrationKind, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Platt | Isotonic:
    """A calibration of this kind; ArtefactError when the labels do not rise with the logits."""
    return fit_platt(logits, labels) if kind == "platt" else fit_isotonic(logits, labels)
