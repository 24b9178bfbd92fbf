"""A sparse autoencoder, as far as steering needs it: its features, one by one, in terms of the raw residual stream."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from pilothouse.core.artefact import check_fits
from pilothouse.core.errors import ArtefactError, BadRequest
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.steering.sae_rows import Encoder, Rows


class FileState(NamedTuple):
    """By what a file is known to be the same: inode, bytes, and nanoseconds of its last change."""

    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Of the file that is there now; OSError where there is none."""
        stat = path.stat()
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class SaeFeature:
    """One feature, with every normalisation of its SAE folded in, so that it meets the raw stream h [d_in] float32.

    Its activation is ``a = x if x > threshold else 0`` with ``x = h . encoder + bias``, and one unit of it adds
    `decoder` [d_in] to the stream. `encoder` [d_in] is None where the SAE cannot be read (`Sae.why_not_read`); bias and
    threshold are then 0. `max_act`: the largest `a` that was seen, None when it is not known.
    """

    decoder: Float32
    encoder: Float32 | None
    bias: float
    threshold: float
    max_act: float | None


@dataclass(frozen=True, eq=False)
class Sae:
    """A residual-stream SAE at the stream after block `layer`.

    `card` is what its publisher wrote of it (SAELens: the whole cfg.json). Exactly one of `encoder` and `why_not_read`
    is given: a sentence on why features can be added to the stream but neither read from it nor clamped.
    """

    name: str
    layer: int
    d_in: int
    d_sae: int
    architecture: str
    model: str | None
    card: Mapping[str, Any]
    decoder: Rows
    format: str
    activation: str
    encoder: Encoder | None = None
    why_not_read: str | None = None
    max_acts: Float32 | None = None
    unit_decoder: bool = False
    """The SAE divides each activation by its row's norm before decoding (`rescale_acts_by_decoder_norm`)."""
    settings: str = ""
    """What changes the rows' numbers and is not in the weights file, such as the factor of a normalisation."""
    opened: FileState | None = None
    """What the weights file was when it was opened; rows are read from that file, whatever lies there later."""
    serial: int = field(default_factory=itertools.count().__next__)
    """Which loading it comes from: no other one's, even where files and name are the same."""

    def __post_init__(self) -> None:
        assert (self.encoder is None) == (self.why_not_read is not None)

    def feature(self, feature: int) -> SaeFeature:
        """One feature for the raw stream. BadRequest for one that the SAE does not have, ArtefactError for one whose
        numbers are not finite."""
        decoder, largest = self.decoder_row(feature), self.max_act(feature)
        if self.encoder is None:
            return SaeFeature(decoder, None, 0.0, 0.0, largest)
        encoder, bias, threshold = self.encoder.folded(feature)
        return SaeFeature(decoder, encoder, bias, threshold, largest)

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
            stored = row.astype(np.float64) * self.decoder.divisor
            largest /= max(float(np.linalg.norm(stored)), 1e-8)
        return largest if largest > 0 else None

    @cached_property
    def digest(self) -> str:
        """``sha256:`` of the weights file, and of `settings` where there are any; read in full the first time.

        ArtefactError when the file is no longer the one that was opened.
        """
        path = self.decoder.path
        try:
            state = FileState.of(path)
            content = _file_digest(path, state)
            changed = {self.opened or state, state, FileState.of(path)} != {state}
        except OSError as error:
            raise ArtefactError(f"{path} cannot be read: {error.strerror}") from None
        if changed:
            raise ArtefactError(f"{path} was changed while it was read")
        if self.settings:
            content = hashlib.sha256(f"{content} {self.settings}".encode()).hexdigest()
        return f"sha256:{content}"

    def check_fits(self, shape: ModelShape) -> None:
        """ArtefactError unless model, layer and width are the served model's."""
        check_fits(f"SAE {self.name!r}", self.model, {self.layer: self.d_in}, shape)


@lru_cache(maxsize=1024)
def _file_digest(path: Path, state: FileState) -> str:
    """SHA-256 of a file, read once while its state stays: a folder of SAEs may be loaded again often."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
