"""A plan: what one request asks of the residual stream, validated, with its content addressed by digests.

Positions count from 0 over the prompt's tokens and then the generated ones. With P prompt tokens, ``prompt`` is
[0, P-1) and ``generation`` is [P-1, end): the last prompt token predicts the first generated one.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from pilothouse.core.errors import BadRequest
from pilothouse.core.sites import Float32, LayerRows

END = 2**31 - 1
"""An end that no sequence reaches: the span is open."""

NamedPositions = Literal["all", "prompt", "generation", "last_prompt"]


@dataclass(frozen=True)
class PositionRange:
    """``from`` inclusive, ``to`` exclusive; negative numbers count back from the end of the prompt."""

    start: int
    stop: int


Positions = NamedPositions | PositionRange


def resolve_positions(positions: Positions, n_prompt: int) -> tuple[int, int]:
    """The half-open span [start, stop) of absolute positions that `positions` selects behind `n_prompt` tokens.

    An explicit range that is empty for this prompt raises ValueError; a named one may be empty (``prompt`` of a
    prompt of one token).
    """
    match positions:
        case "all":
            return 0, END
        case "prompt":
            return 0, n_prompt - 1
        case "generation":
            return n_prompt - 1, END
        case "last_prompt":
            return n_prompt - 1, n_prompt
    start, stop = (p + n_prompt if p < 0 else p for p in (positions.start, positions.stop))
    start = max(start, 0)
    if stop <= start:
        raise ValueError(
            f"positions from {positions.start} to {positions.stop} select nothing in a prompt of {n_prompt} tokens"
        )
    return start, stop


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

    @property
    def payload(self) -> dict[int, bytes]:
        """The rows as little-endian float32 bytes by layer, as they travel."""
        return {layer: np.ascontiguousarray(row, dtype="<f4").tobytes() for layer, row in self.layers.items()}


def rows_from_payload(payload: Mapping[int, bytes]) -> dict[int, Float32]:
    """The inverse of `Direction.payload`."""
    return {layer: np.frombuffer(raw, dtype="<f4") for layer, raw in payload.items()}


@dataclass(frozen=True, eq=False)
class Edit:
    """Add ``coefficients[L] * direction.layers[L]`` to the stream after block L at `positions`.

    `label` is what the client called the direction; it appears in receipts and, when configured, in metrics.
    """

    label: str
    direction: Direction
    coefficients: Mapping[int, float]
    positions: Positions
    op: str = "add"
    source: Literal["vector", "sae", "inline"] = "vector"
    feature: int | None = None

    @property
    def digest(self) -> bytes:
        """Identity of what is added, coefficients included, positions not."""
        sha = hashlib.sha256(self.direction.digest)
        for layer in sorted(self.coefficients):
            sha.update(f"|{self.op}:{layer}:{self.coefficients[layer].hex()}".encode())
        return sha.digest()

    def is_identity(self) -> bool:
        """True when every coefficient is zero: nothing would change."""
        return all(c == 0.0 for c in self.coefficients.values())


@dataclass(frozen=True, eq=False)
class Readout:
    """Read ``sum over L of stream_L . direction.layers[L]`` at every position, for the probe called `label`."""

    label: str
    direction: Direction


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything one request asks for. An empty plan is a plain request."""

    edits: tuple[Edit, ...] = ()
    readouts: tuple[Readout, ...] = ()
    prompt_scores: bool = False

    @property
    def empty(self) -> bool:
        return not self.edits and not self.readouts


@dataclass(frozen=True)
class Segment:
    """A run of positions [start, stop) on which exactly the edits numbered in `active` apply."""

    start: int
    stop: int
    active: tuple[int, ...]


def edit_spans(edits: Iterable[Edit], n_prompt: int) -> list[tuple[int, int]]:
    """Absolute spans of the edits, in order; an impossible one raises BadRequest naming the edit."""
    spans = []
    for i, edit in enumerate(edits):
        try:
            spans.append(resolve_positions(edit.positions, n_prompt))
        except ValueError as error:
            raise BadRequest(str(error), param=f"steering[{i}].positions") from None
    return spans


def segments(spans: list[tuple[int, int]]) -> list[Segment]:
    """Cut overlapping spans into disjoint segments in ascending order; positions without an edit have none."""
    cuts = sorted({edge for start, stop in spans if stop > start for edge in (start, stop)})
    found = []
    for start, stop in itertools.pairwise(cuts):
        active = tuple(i for i, (a, b) in enumerate(spans) if a <= start and stop <= b)
        if active:
            found.append(Segment(start, stop, active))
    return found


def require_finite(value: float, param: str) -> float:
    """`value` when it is a finite number, else BadRequest."""
    if not math.isfinite(value):
        raise BadRequest(f"{param} must be a finite number, not {value}", param=param)
    return value
