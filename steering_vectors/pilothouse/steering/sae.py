"""A sparse autoencoder, as far as steering needs it: its decoder, row by row."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from pilothouse.core.artefact import check_fits
from pilothouse.core.errors import ArtefactError, BadRequest
from pilothouse.core.sites import Float32, ModelShape

CACHED_ROWS = 256


class Decoder:
    """The matrix ``W_dec`` of a safetensors file, read a row at a time from the mapped file.

    transposed: the file has it as [d_in, d_sae]; divisor: rows are divided by it to be in the stream's own units.
    """

    def __init__(self, path: Path, *, transposed: bool = False, divisor: float = 1.0) -> None:
        self.path = path
        self._transposed = transposed
        self._divisor = divisor
        # numpy has no bfloat16, so torch does the reading.
        self._weights = safe_open(path, framework="pt")
        self.row = lru_cache(maxsize=CACHED_ROWS)(self._read)

    def _read(self, feature: int) -> Float32:
        matrix = self._weights.get_slice("W_dec")
        span = slice(feature, feature + 1)
        stored = matrix[:, span] if self._transposed else matrix[span]
        row: Float32 = stored.flatten().float().numpy().astype(np.float32)
        row = (row.astype(np.float64) / self._divisor).astype(np.float32)
        if not np.isfinite(row).all():
            raise ArtefactError(f"{self.path}: row {feature} of W_dec holds NaN or infinite numbers")
        row.flags.writeable = False
        return row


@dataclass(frozen=True, eq=False)
class Sae:
    """A residual-stream SAE at the stream after block `layer`; `card` is its whole cfg.json."""

    name: str
    layer: int
    d_in: int
    d_sae: int
    architecture: str
    model: str | None
    card: Mapping[str, Any]
    decoder: Decoder
    max_acts: Float32 | None = None
    unit_decoder: bool = False
    """The SAE divides each activation by its row's norm before decoding (`rescale_acts_by_decoder_norm`)."""

    def decoder_row(self, feature: int) -> Float32:
        """What one unit of the feature adds to the stream, [d_in] float32, not normalised.

        BadRequest for a feature that the SAE does not have, ArtefactError for a row that is not finite.
        """
        if not 0 <= feature < self.d_sae:
            raise BadRequest(f"SAE {self.name!r} has features 0 to {self.d_sae - 1}, not {feature}", param="feature")
        return self.decoder.row(feature)

    def max_act(self, feature: int) -> float | None:
        """The largest multiple of `decoder_row` that the feature was seen to add to the stream.

        None when the folder does not say, or says that the feature never fired.
        """
        row = self.decoder_row(feature)
        if self.max_acts is None:
            return None
        largest = float(self.max_acts[feature])
        if self.unit_decoder:
            largest /= max(float(np.linalg.norm(row.astype(np.float64))), 1e-8)
        return largest if largest > 0 else None

    @cached_property
    def digest(self) -> str:
        """``sha256:`` of the weights file; read in full the first time."""
        with self.decoder.path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

    def check_fits(self, shape: ModelShape) -> None:
        """ArtefactError unless model, layer and width are the served model's."""
        check_fits(f"SAE {self.name!r}", self.model, {self.layer: self.d_in}, shape)
