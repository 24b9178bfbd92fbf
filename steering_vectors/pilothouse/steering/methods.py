"""Directions from contrast pairs, as pure functions of activations: positive and negative [pairs, d_model].

mean_difference: Rimsky et al., Steering Llama 2 via Contrastive Activation Addition, 2024.
pca: first principal component of the paired differences, not centred. This is repeng's `pca_center` (each pair centred
on its own middle): what all pairs have in common is what is looked for, and centring the differences would remove it.
lat: Zou et al., Representation Engineering, 2023 (linear artificial tomography): differences of random pairs out of all
items, whatever their labels; centred; first principal component.
logistic: L2-penalised logistic regression on standardised activations, its weights mapped back to the raw stream.

All but the mean difference find a line rather than a vector. Its sign is the one by which positives project higher on
average, and its length that of the mean difference projected on it, so that strength 1 means the same for every method:
as far along this line as the positives are from the negatives.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32

Float64 = npt.NDArray[np.float64]
Method = Literal["mean_difference", "pca", "lat", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)

SCALES: Mapping[Method, str] = {
    "mean_difference": "mean difference",
    **dict.fromkeys(METHODS[1:], "length of the mean difference projected on the direction"),
}
"""What the length of a row is, for its card."""


def find_direction(method: Method, positive: Float32, negative: Float32, seed: int = 0) -> Float32:
    """The row [d_model] of `method` at one layer, signed and scaled as the module says; `seed` pairs items for `lat`.

    ArtefactError when the activations are not finite or have nothing to tell the two sides apart by.
    """
    if not (np.isfinite(positive).all() and np.isfinite(negative).all()):
        raise ArtefactError("the model's stream holds NaN or infinite numbers on these pairs")
    difference = mean_difference(positive, negative)
    if method == "mean_difference":
        return difference.astype(np.float32)
    finders: Mapping[str, Callable[[], Float64]] = {
        "pca": lambda: pca(positive, negative),
        "lat": lambda: lat(positive, negative, seed),
        "logistic": lambda: logistic(positive, negative),
    }
    line = finders[method]()
    norm = float(np.linalg.norm(line))
    along = float(difference @ line) / norm if norm > 0 else 0.0
    # What is left of a zero by rounding would be a direction made of noise.
    if not abs(along) > 1e-12 * float(np.linalg.norm(difference)):
        raise ArtefactError(f"{method} finds no direction that tells the positive items from the negative ones")
    return (line / norm * along).astype(np.float32)


def mean_difference(positive: Float32, negative: Float32) -> Float64:
    """Mean of the positive items minus that of the negative ones."""
    # In float64: the stream may be far longer than the difference.
    return np.asarray(positive.mean(axis=0, dtype=np.float64) - negative.mean(axis=0, dtype=np.float64))


def pca(positive: Float32, negative: Float32) -> Float64:
    """Unit vector, of either sign, along which the paired differences are longest in the mean square."""
    return _first_component(positive.astype(np.float64) - negative.astype(np.float64))


def lat(positive: Float32, negative: Float32, seed: int) -> Float64:
    """Unit vector, of either sign, along which the differences of randomly paired items vary most."""
    items = np.concatenate([positive, negative]).astype(np.float64)
    order = np.random.default_rng(seed).permutation(len(items))
    differences = items[order[::2]] - items[order[1::2]]
    # Of a single difference the centre is the difference itself, and nothing would be left.
    centre = differences.mean(axis=0) if len(differences) > 1 else 0.0
    return _first_component(differences - centre)


def logistic(positive: Float32, negative: Float32) -> Float64:
    """Weights of the raw stream, of any length, in the logit that an item is positive."""
    # Slow to import, and a server never fits.
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([positive, negative]).astype(np.float64)
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    mean, std = x.mean(axis=0), x.std(axis=0)
    # A component that does not vary says nothing; divided by its rounding it would say anything.
    std = np.where(std > 1e-6 * np.abs(mean) + 1e-30, std, np.inf)
    fitted = LogisticRegression(C=1.0, max_iter=10_000).fit((x - mean) / std, labels)
    return np.asarray(fitted.coef_[0] / std, dtype=np.float64)


def _first_component(rows: Float64) -> Float64:
    """First right singular vector of rows [n, d]; zeros when all rows are zero."""
    n, d = rows.shape
    if n >= d:
        return np.asarray(np.linalg.eigh(rows.T @ rows)[1][:, -1])
    # The smaller of the two products has the same first component.
    component = rows.T @ np.linalg.eigh(rows @ rows.T)[1][:, -1]
    return np.asarray(component / max(float(np.linalg.norm(component)), np.finfo(np.float64).tiny))
