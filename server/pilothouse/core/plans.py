"""A plan: what one request asks of the residual stream, validated, with its content addressed by digests.

Positions count from 0 over the prompt's tokens and then the generated ones. With P prompt tokens, ``prompt`` is
[0, P-1) and ``generation`` is [P-1, end): the last prompt token predicts the first generated one.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Positions
from pilothouse.core.errors import BadRequest

END = 2**31 - 1
"""An end that no sequence reaches: the span is open."""


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

    @cached_property
    def reach(self) -> float:
        """How much all edits together may add to one component of the stream, over all layers, whatever the stream."""
        return sum(edit.reach(layer) for edit in self.edits for layer in edit.coefficients)

    @property
    def directions(self) -> list[Direction]:
        """All content that the engine needs for it; that of gates is among the readouts."""
        rows = [edit.direction for edit in self.edits]
        rows += [edit.reader.direction for edit in self.edits if edit.reader is not None]
        return rows + [readout.direction for readout in self.readouts]


@dataclass(frozen=True)
class Segment:
    """A run of positions [start, stop) on which exactly the edits numbered in `active` apply."""

    start: int
    stop: int
    active: tuple[int, ...]


def edit_spans(edits: Iterable[Edit], n_prompt: int) -> list[tuple[int, int]]:
    """Absolute spans of the edits, in order; an impossible one raises BadRequest naming the edit.

    Position 0 is BOS or the attention sink that stands in for it: no gate is open there. An edit behind a latched gate
    acts on generated tokens only, the first of which is at position `n_prompt`.
    """
    spans = []
    for i, edit in enumerate(edits):
        try:
            start, stop = resolve_positions(edit.positions, n_prompt)
        except ValueError as error:
            raise BadRequest(str(error), param=f"steering[{i}].positions") from None
        first = 0 if edit.gate is None else n_prompt if edit.gate.latched else 1
        spans.append((max(start, first), max(stop, first)))
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
