"""Directions that separate two classes of activations.

Mass-mean: the difference of class means (Marks & Tegmark, The Geometry of Truth, 2023), each topic centred on its own.
Logistic regression: L2-penalised, on standardised activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pilothouse.core.sites import Float32
from pilothouse.probing.calibration import Float64

Method = Literal["mass_mean", "logistic"]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Standardiser:
    """Per layer, mean and standard deviation [d_model] of the training items, in the float32 that a probe stores."""

    mean: Mapping[int, Float32]
    std: Mapping[int, Float32]

    @classmethod
    def fit(cls, features: Mapping[int, Float32], rows: npt.NDArray[np.int64]) -> "Standardiser":
        """From the items `rows` of `features`; a dimension that does not vary is left at its scale."""
        mean = {layer: x[rows].mean(axis=0, dtype=np.float64).astype(np.float32) for layer, x in features.items()}
        std = {layer: x[rows].std(axis=0, dtype=np.float64).astype(np.float32) for layer, x in features.items()}
        still = {layer: s <= 1e-6 * np.abs(mean[layer]) + 1e-30 for layer, s in std.items()}
        return cls(mean, {layer: np.where(still[layer], np.float32(1), s) for layer, s in std.items()})

    def apply(self, features: Mapping[int, Float32], rows: npt.NDArray[np.int64]) -> Float64:
        """The items `rows` standardised, layers side by side: [items, layers * d_model]."""
        parts = [(features[layer][rows].astype(np.float64) - self.mean[layer]) / self.std[layer] for layer in self.mean]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class LinearFit:
    """A direction in standardised activations and its bias."""

    weight: Float64
    bias: float

    def project(self, x: Float64) -> Float64:
        """x [items, n] onto the direction: [items]."""
        return np.asarray(x @ self.weight + self.bias, dtype=np.float64)


def fit_direction(method: Method, x: Float64, labels: Labels, topics: Sequence[str | None]) -> LinearFit:
    """The direction of label 1 in standardised activations [items, n]; mass-mean has no bias or scale of its own."""
    if method == "mass_mean":
        centred = _centre_topics(x, topics)
        return LinearFit(centred[labels == 1].mean(axis=0) - centred[labels == 0].mean(axis=0), 0.0)
    # Slow to import, and a server never fits.
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=10_000).fit(x, labels)
    return LinearFit(model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def auroc(scores: npt.ArrayLike, labels: Labels) -> float:
    """Area under the ROC curve: how often an item of label 1 scores above one of label 0, ties counting half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _centre_topics(x: Float64, topics: Sequence[str | None]) -> Float64:
    centred = x.copy()
    names = np.array([topic or "" for topic in topics])
    for topic in np.unique(names):
        centred[names == topic] -= x[names == topic].mean(axis=0)
    return centred
