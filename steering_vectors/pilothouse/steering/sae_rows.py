"""The two matrices of an SAE, a feature at a time: what it adds to the stream, and how it is read from it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae_formats.tensors import TensorFile

CACHED_ROWS = 256


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

    def _read(self, feature: int) -> Float32:
        stored = self._file.take(self.tensor, feature, self.axis)
        with np.errstate(over="ignore", invalid="ignore"):
            row = (stored.astype(np.float64) / self.divisor).astype(np.float32)
        if not np.isfinite(row).all():
            side = "column" if self.axis else "row"
            raise ArtefactError(f"{self.path}: {side} {feature} of {self.tensor} holds NaN or infinite numbers")
        row.flags.writeable = False
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
        column = self.columns.row(feature).astype(np.float64)
        bias = float(self.bias[feature])
        if self.gain is not None:
            column = column * float(self.gain[feature])
        if self.shift is not None:
            bias -= float(self.shift.astype(np.float64) @ column)
        with np.errstate(over="ignore"):
            row = (self.scale * column).astype(np.float32)
            bias = float(np.float32(bias))
        if not (np.isfinite(row).all() and np.isfinite(bias)):
            raise ArtefactError(f"{self.columns.path}: feature {feature} has an encoder too large for float32")
        row.flags.writeable = False
        return row, bias, float(self.threshold[feature])
