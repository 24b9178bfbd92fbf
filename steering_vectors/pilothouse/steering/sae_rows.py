"""The two matrices of an SAE, a feature at a time: what it adds to the stream, and how it is read from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae_formats.tensors import TensorFile

CACHED_ROWS = 256
BLOCK_NUMBERS = 1 << 22
"""How many numbers of a matrix are read at a time where all of it is gone through."""


class Rows:
    """A matrix of one row of d_in numbers a feature, read from its file when a row is asked for.

    axis: the dimension of the stored tensor that counts features, 1 where it is stored as [d_in, d_sae]; divisor: rows
    are divided by it to be in the stream's own units. ArtefactError for a row that is not finite.
    """

    def __init__(self, file: TensorFile, tensor: str, *, axis: int = 0, divisor: float = 1.0) -> None:
        self.path = file.path
        self.tensor = tensor
        self.axis = axis
        self.divisor = divisor
        self._file = file
        self.row = lru_cache(maxsize=CACHED_ROWS)(self._read)

    def block(self, start: int, stop: int) -> Float32:
        """The rows of the features from `start` to before `stop`, [stop - start, d_in]."""
        stored = self._file.take(self.tensor, start, stop, self.axis)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = (stored.astype(np.float64) / self.divisor).astype(np.float32, order="C")
        if (bad := first_not_finite(rows)) is not None:
            side = "column" if self.axis else "row"
            raise ArtefactError(f"{self.path}: {side} {start + bad} of {self.tensor} holds NaN or infinite numbers")
        rows.flags.writeable = False
        return rows

    def _read(self, feature: int) -> Float32:
        row: Float32 = self.block(feature, feature + 1)[0]
        return row


@dataclass(frozen=True, eq=False)
class Encoder:
    """How features are read, as it is stored. Of the raw stream h [d_in] the activation of feature i is x where
    x > threshold[i] and otherwise 0, with

        x = gain[i] * ((scale * h - shift) . columns[i]) + bias[i]

    bias, threshold and gain are [d_sae] float32, shift is [d_in] (b_dec, where the SAE subtracts it from its input).
    """

    columns: Rows
    bias: Float32
    threshold: Float32
    shift: Float32 | None = None
    scale: float = 1.0
    gain: Float32 | None = None

    def folded(self, feature: int) -> tuple[Float32, float, float]:
        """Encoder row [d_in], bias and threshold of one feature, for the raw stream: x = h . row + bias."""
        rows, bias = self._fold(self.columns.row(feature)[None], feature)
        return rows[0], float(bias[0]), float(self.threshold[feature])

    def folded_block(self, start: int, stop: int) -> tuple[Float32, Float32]:
        """Encoder rows [stop - start, d_in] and biases of the features from `start` to before `stop`, as `folded`."""
        return self._fold(self.columns.block(start, stop), start)

    def _fold(self, stored: Float32, start: int) -> tuple[Float32, Float32]:
        columns = stored.astype(np.float64)
        biases = self.bias[start : start + len(columns)].astype(np.float64)
        if self.gain is not None:
            columns *= self.gain[start : start + len(columns), None]
        if self.shift is not None:
            biases -= columns @ self.shift.astype(np.float64)
        with np.errstate(over="ignore"):
            rows = (self.scale * columns).astype(np.float32)
            folded = biases.astype(np.float32)
        if (bad := first_not_finite(np.column_stack([rows, folded]))) is not None:
            raise ArtefactError(f"{self.columns.path}: feature {start + bad} has an encoder too large for float32")
        rows.flags.writeable = False
        return rows, folded


def blocks(d_sae: int, d_in: int) -> Iterator[tuple[int, int]]:
    """First feature and one past the last of the blocks by which a matrix [d_sae, d_in] is gone through."""
    size = max(1, BLOCK_NUMBERS // d_in)
    return ((start, min(start + size, d_sae)) for start in range(0, d_sae, size))


def first_not_finite(rows: Float32) -> int | None:
    """The first row of [n, d] that holds NaN or an infinite number; None when there is none."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    return int(bad[0]) if len(bad) else None
