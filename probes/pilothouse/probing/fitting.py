"""Directions that separate two classes of activations.

Mass-mean: the difference of class means (Marks & Tegmark, The Geometry of Truth, 2023), each topic centred on its own;
whitened: multiplied by the inverse of the covariance within the classes, as in their section 5.1, shrunk by the rule of
Ledoit & Wolf (2004), since there are seldom many more items than dimensions.
Logistic regression: L2-penalised, on standardised activations.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.probing.activation_cache import ActivationCache, Arrays
from pilothouse.probing.calibration import Float64
from pilothouse.probing.metrics import Labels

Method = Literal["mass_mean", "mass_mean_whitened", "logistic"]

PENALTIES = [0.001, 0.01, 0.1, 1.0]
"""Inverse strengths, scikit-learn's C, that logistic regression chooses from."""
FOLDS = 5
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Samples:
    """Rows to fit on: features by layer [n, d_model], and of each row its label, its item's index and topic [n]."""

    features: Mapping[int, Float32]
    labels: Labels
    owners: npt.NDArray[np.int64]
    topics: tuple[str | None, ...]

    def at(self, layers: Collection[int]) -> "Samples":
        """The same rows at some of the layers."""
        return replace(self, features={layer: self.features[layer] for layer in layers})

    def without_topics(self, topics: Collection[str]) -> "Samples":
        """The rows of other topics."""
        kept = np.flatnonzero([topic not in topics for topic in self.topics])
        features = {layer: x[kept] for layer, x in self.features.items()}
        return Samples(features, self.labels[kept], self.owners[kept], tuple(self.topics[i] for i in kept))

    def flipped(self, flips: Labels) -> "Samples":
        """The same rows, with the labels of the items turned over for which `flips` [items] is 1."""
        return replace(self, labels=self.labels ^ flips[self.owners])

    @property
    def has_both_labels(self) -> bool:
        """Whether there is something to tell apart."""
        return set(self.labels.tolist()) == {0, 1}


@dataclass(frozen=True)
class Standardiser:
    """Per layer, mean and standard deviation [d_model] of the training rows, in the float32 that a probe stores."""

    mean: Mapping[int, Float32]
    std: Mapping[int, Float32]

    @classmethod
    def fit(cls, features: Mapping[int, Float32]) -> "Standardiser":
        """From features by layer [n, d_model]; a dimension that does not vary is left at its scale."""
        mean = {layer: x.mean(axis=0, dtype=np.float64).astype(np.float32) for layer, x in features.items()}
        std = {layer: x.std(axis=0, dtype=np.float64).astype(np.float32) for layer, x in features.items()}
        still = {layer: s <= 1e-6 * np.abs(mean[layer]) + 1e-30 for layer, s in std.items()}
        return cls(mean, {layer: np.where(still[layer], np.float32(1), s) for layer, s in std.items()})

    def apply(self, features: Mapping[int, Float32]) -> Float64:
        """The rows standardised, layers side by side: [n, layers * d_model]."""
        parts = [(features[layer].astype(np.float64) - self.mean[layer]) / self.std[layer] for layer in self.mean]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class LinearFit:
    """A direction in standardised activations and its bias."""

    weight: Float64
    bias: float


@dataclass(frozen=True)
class Fitter:
    """Fits one method; tells `advance` of each fit, and keeps fits in the cache, if there is one."""

    method: Method
    advance: Callable[[int], None]
    cache: ActivationCache | None = None

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Weights, bias, mean and std of a probe fitted on `samples`, as fields of `Probe`.

        Of a difference of means only the order of its logits means something: it has no scale or bias of its own.
        """
        standardiser = Standardiser.fit(samples.features)
        x = standardiser.apply(samples.features)
        fit = self._direction(x, samples.labels, samples.topics)
        parts = np.split(fit.weight.astype(np.float32), len(standardiser.mean))
        self.advance(1)
        return {
            "weights": dict(zip(standardiser.mean, parts, strict=True)),
            "bias": float(np.float32(fit.bias)),
            "mean": standardiser.mean,
            "std": standardiser.std,
        }

    def _direction(self, x: Float64, labels: Labels, topics: Sequence[str | None]) -> LinearFit:
        def make() -> Arrays:
            fit = fit_direction(self.method, x, labels, topics)
            return {"weight": fit.weight, "bias": np.array([fit.bias])}

        if self.cache is None:
            made = make()
        else:
            sha = hashlib.sha256(repr((x.shape, tuple(topics))).encode())
            # Through the buffers as they are: a copy of the rows might not fit beside them.
            sha.update(np.ascontiguousarray(x).data)
            sha.update(np.ascontiguousarray(labels).data)
            made = self.cache.arrays(
                {"kind": "fit", "method": self.method, "penalties": PENALTIES, "on": sha.hexdigest()}, make
            )
        return LinearFit(made["weight"], float(made["bias"][0]))


def fit_direction(method: Method, x: Float64, labels: Labels, topics: Sequence[str | None]) -> LinearFit:
    """The direction of label 1 in standardised activations [items, n]; mass-mean has no bias or scale of its own.

    ArtefactError when there is nothing to whiten by: no variation within the classes.
    """
    if method == "logistic":
        return _logistic(x, labels)
    centred = _centre_topics(x, topics)
    means = np.stack([centred[labels == label].mean(axis=0) for label in (0, 1)])
    theta = means[1] - means[0]
    return LinearFit(theta if method == "mass_mean" else _whitened(theta, centred - means[labels]), 0.0)


def _logistic(x: Float64, labels: Labels) -> LinearFit:
    """Logistic regression with the L2 penalty of PENALTIES under which held-out fifths are likeliest: a few hundred
    items in as many dimensions are separated by chance, and the weakest penalty would learn that."""
    # Slow to import, and a server never fits.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    model = LogisticRegression(C=max(PENALTIES), max_iter=10_000)
    folds = min(FOLDS, int(np.bincount(labels.astype(np.int64), minlength=2).min()))
    if folds >= 2:
        shuffled = StratifiedKFold(folds, shuffle=True, random_state=0)
        search = GridSearchCV(model, {"C": PENALTIES}, scoring="neg_log_loss", cv=shuffled)
        model = search.fit(x, labels).best_estimator_
    else:
        model = model.fit(x, labels)
    return LinearFit(model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def _whitened(theta: Float64, residuals: Float64) -> Float64:
    """Sigma^-1 theta, with Sigma the shrunk covariance of `residuals` [items, n] from the means of their classes."""
    from sklearn.covariance import LedoitWolf

    covariance = LedoitWolf(store_precision=False, assume_centered=True).fit(residuals).covariance_
    try:
        return np.asarray(np.linalg.solve(covariance, theta), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise ArtefactError("the activations do not vary within the classes, so mass_mean cannot be whitened") from None


def _centre_topics(x: Float64, topics: Sequence[str | None]) -> Float64:
    centred = x.copy()
    names = np.array([topic or "" for topic in topics])
    for topic in np.unique(names):
        centred[names == topic] -= x[names == topic].mean(axis=0)
    return centred
