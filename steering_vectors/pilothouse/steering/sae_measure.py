"""How well an SAE rebuilds the stream, and how often and how far each of its features fires."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.sites import Float32
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_pass import Arrays, encode, run_pass

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class SaeMeasures:
    """Sums over rows [n, d_in] and their reconstructions by an SAE.

    mean, variance, error [d_in]: of each dimension of the rows its mean and variance, and the mean squared error;
    fired, max_act [d_sae]: at how many rows each feature is above 0, and its largest activation.
    """

    n_rows: int
    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]
    fired: npt.NDArray[np.int64]
    max_act: Float32

    @property
    def explained_variance(self) -> float:
        """1 - error / variance, each summed over dimensions; the variance is about each dimension's own mean."""
        return float(1 - self.error.sum() / self.variance.sum())

    @property
    def frequency(self) -> Float32:
        """The share of tokens at which each feature fires [d_sae]."""
        return (self.fired / self.n_rows).astype(np.float32)

    @property
    def card(self) -> dict[str, Any]:
        """The measures as JSON.

        mse: the squared error summed over dimensions, mean over tokens; l0: features that fire at a token, on average;
        dead_share: of features that fire at no token; explained_variance_by_dimension: the mean over dimensions of
        1 - error / variance, which weighs small dimensions like large ones.
        """
        varies = self.variance > 0
        return {
            "tokens": self.n_rows,
            "explained_variance": self.explained_variance,
            "explained_variance_by_dimension": float(np.mean(1 - self.error[varies] / self.variance[varies])),
            "mse": float(self.error.sum()),
            "variance": float(self.variance.sum()),
            "l0": float(self.fired.sum() / self.n_rows),
            "dead": int((self.fired == 0).sum()),
            "dead_share": float((self.fired == 0).mean()),
        }


def measure_sae(
    sae: Any, rows: npt.NDArray[Any], kept: Path | None = None, progress: Progress | None = None
) -> SaeMeasures:
    """Run an SAE (see `load_encoder`) over all `rows`; `kept` as in `run_pass`."""
    d_in, d_sae = rows.shape[1], sae.cfg.d_sae
    # About a row of the data: the difference of two large sums would lose the variance of a stream far from 0.
    middle = np.asarray(rows[0], dtype=np.float64)
    state: Arrays = {
        "sum": np.zeros(d_in),
        "square": np.zeros(d_in),
        "error": np.zeros(d_in),
        "fired": np.zeros(d_sae, dtype=np.int64),
        "max_act": np.zeros(d_sae, dtype=np.float32),
    }

    def update(state: Arrays, chunk: tuple[int, int]) -> None:
        part = np.asarray(rows[slice(*chunk)], dtype=np.float32)
        acts, rebuilt = encode(sae, part)
        wide = part.astype(np.float64)
        state["sum"] += (wide - middle).sum(axis=0)
        state["square"] += ((wide - middle) ** 2).sum(axis=0)
        state["error"] += ((wide - rebuilt) ** 2).sum(axis=0)
        state["fired"] += (acts > 0).sum(axis=0)
        np.maximum(state["max_act"], acts.max(axis=0), out=state["max_act"])

    chunks = [(first, min(first + ROWS_AT_ONCE, len(rows))) for first in range(0, len(rows), ROWS_AT_ONCE)]
    end = run_pass(state, chunks, update, kept, progress)
    shift = end["sum"] / len(rows)
    return SaeMeasures(
        n_rows=len(rows),
        mean=middle + shift,
        variance=end["square"] / len(rows) - shift**2,
        error=end["error"] / len(rows),
        fired=end["fired"],
        max_act=end["max_act"],
    )
