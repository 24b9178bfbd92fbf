"""Directions: rows of d_model numbers, one a layer, whose identity is their content."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pilothouse.core.sites import Float32, LayerRows


def digest_rows(layers: LayerRows) -> bytes:
    """SHA-256 over layers and their float32 rows: the identity of a direction, whatever it is called."""
    sha = hashlib.sha256(b"pilothouse.rows.1")
    for layer in sorted(layers):
        row = np.ascontiguousarray(layers[layer], dtype="<f4")
        sha.update(f"|{layer}:{row.shape[0]}|".encode())
        sha.update(row.tobytes())
    return sha.digest()


@dataclass(frozen=True, eq=False)
class Direction:
    """Rows of d_model float32, one a layer, known by the digest of their content; the unit of upload to the engine."""

    layers: LayerRows
    digest: bytes = field(default=b"")

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", digest_rows(self.layers))

    @cached_property
    def peaks(self) -> dict[int, float]:
        """The largest absolute entry of each layer's row."""
        return {layer: float(np.abs(row).max()) for layer, row in self.layers.items()}

    @cached_property
    def lengths(self) -> dict[int, float]:
        """The L2 norm of each layer's row."""
        return {layer: float(np.linalg.norm(row.astype(np.float64))) for layer, row in self.layers.items()}

    @property
    def n_bytes(self) -> int:
        """What the rows take."""
        return sum(row.nbytes for row in self.layers.values())

    @property
    def payload(self) -> dict[int, bytes]:
        """The rows as little-endian float32 bytes by layer, as they travel."""
        return {layer: np.ascontiguousarray(row, dtype="<f4").tobytes() for layer, row in self.layers.items()}


def rows_from_payload(payload: Mapping[int, bytes]) -> dict[int, Float32]:
    """The inverse of `Direction.payload`."""
    return {layer: np.frombuffer(raw, dtype="<f4") for layer, raw in payload.items()}
