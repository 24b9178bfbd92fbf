"""Which row and which steps each token of a batch takes: a pure function of its request's orders and its position.

Between two steps nothing of NumPy is in the processor's cache, and what a call costs is the call. So these are few, and
such as do not go through Python again, as `any` and `max` of an array do.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pilothouse.core.messages import RequestOrders
from pilothouse.core.sites import Float32

NEVER = np.iinfo(np.int64).max
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Taken(NamedTuple):
    """What the tokens [n] of a step take, the lines of their requests and their positions being known.

    rows: of edits; reads: whether their readouts are wanted; chained: their chains, and gains [n, chain_steps], 1 where
    a step of the chain acts by its positions, gates aside; None where no token has a chain.
    """

    rows: Ints
    reads: Bools
    chained: tuple[Ints, Float32] | None

    def repeated(self, counts: Ints) -> "Taken":
        """What it is of one token, of so many alike each."""
        rows, reads = self.rows.repeat(counts), self.reads.repeat(counts)
        if self.chained is None:
            return Taken(rows, reads, None)
        chains, gains = self.chained
        return Taken(rows, reads, (chains.repeat(counts), gains.repeat(counts, axis=0)))


class SpanTable:
    """One line a request: its spans [start, stop) with their rows, its chain with the span of each step, and from where
    its readouts are wanted.

    Line 0 belongs to requests without a plan: no spans, no steps, no readouts.
    """

    def __init__(self, max_spans: int, chain_steps: int, lines: int = 64) -> None:
        self._line: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 1
        # One table for all of it. First the positions where something changes: those of spans, of steps, of reading.
        self._widths = (max_spans, max_spans, chain_steps, chain_steps, 1, max_spans, 1)
        bounds = np.cumsum((0, *self._widths)).tolist()
        self._start, self._stop, self._step_start, self._step_stop, self._read_from, self._row, self._chain = (
            slice(*found) for found in pairwise(bounds)
        )
        self._edges = slice(0, self._read_from.stop)
        self._table: Ints = np.empty((0, bounds[-1]), dtype=np.int64)
        self._grow(lines)

    def __len__(self) -> int:
        return len(self._line)

    @property
    def capacity(self) -> int:
        """Lines that there is room for; it grows."""
        return len(self._table)

    def add(self, request_id: str, orders: RequestOrders) -> int:
        """Note where `request_id` finds its rows and steps; replaces an earlier line of the same request."""
        line = self._line.get(request_id) or self._new_line(request_id)
        self._table[line] = self._numbers(orders)
        return line

    def remove(self, request_id: str) -> int | None:
        """Forget `request_id`; the line that it had."""
        line = self._line.pop(request_id, None)
        if line is not None:
            self._free.append(line)
        return line

    def lines(self, request_ids: Sequence[str]) -> Ints:
        """The line of each request, 0 for those without a plan."""
        return np.array([self._line.get(request_id, 0) for request_id in request_ids], dtype=np.int64)

    def taken(self, lines: Ints, counts: Ints, computed: Ints) -> tuple[Taken, int]:
        """What each token of a step takes, and how many tokens further the first of its requests takes something else
        than at its own first one. Of each request [n]: its line, its tokens in the step, and the position of the first.
        """
        table = self._table[lines]
        further = table[:, self._edges] - computed[:, None]
        ahead = further > 0
        near = int(np.minimum.reduce(np.where(ahead, further, NEVER), axis=None))
        if not np.count_nonzero(counts > 1):
            return self._at(table, ahead), near
        within = ahead & (further < counts[:, None])
        if np.count_nonzero(within):
            # Cut up where something changes; what the first token of a piece takes, all of them do.
            offsets = counts.cumsum() - counts
            begins = np.concatenate((offsets, (offsets[:, None] + further)[within]))
            begins.sort()
            owners = offsets.searchsorted(begins, side="right") - 1
            table, positions = table[owners], computed[owners] + begins - offsets[owners]
            ahead = table[:, self._edges] > positions[:, None]
            counts = np.diff(begins, append=np.add.reduce(counts))
        return self._at(table, ahead).repeated(counts), near

    def _at(self, table: Ints, ahead: Bools) -> Taken:
        """What tokens take whose lines are `table`, and which of the edges lie ahead of them."""
        behind = ~ahead
        inside = behind[:, self._start] & ahead[:, self._stop]
        rows: Ints = np.add.reduce(inside * table[:, self._row], axis=1)
        reads = behind[:, self._read_from.start]
        chains = table[:, self._chain.start]
        if not np.count_nonzero(chains):
            return Taken(rows, reads, None)
        gains = (behind[:, self._step_start] & ahead[:, self._step_stop]).astype(np.float32)
        return Taken(rows, reads, (chains, gains))

    def _numbers(self, orders: RequestOrders) -> list[int]:
        """A line of the table; too long a one where there are more spans or steps than there is room for."""
        spans, steps = orders.spans, orders.steps
        parts = (
            [span.start for span in spans],
            [span.stop for span in spans],
            [step.start for step in steps],
            [step.stop for step in steps],
            [orders.read_from if orders.columns else NEVER],
            [orders.rows[span.row] for span in spans],
            [orders.chain],
        )
        found: list[int] = []
        for part, width in zip(parts, self._widths, strict=True):
            found += part + [0] * (width - len(part))
        return found

    def _new_line(self, request_id: str) -> int:
        if self._free:
            line = self._free.pop()
        else:
            line, self._used = self._used, self._used + 1
            if line == len(self._table):
                self._grow(2 * line)
        self._line[request_id] = line
        return line

    def _grow(self, lines: int) -> None:
        """Make room for so many lines; what is in them stays."""
        nobody = np.array(self._numbers(RequestOrders((), (), (), 0)), dtype=np.int64)
        table = np.tile(nobody, (lines, 1))
        table[: len(self._table)] = self._table
        self._table = table


def positions_of(counts: Ints, computed: Ints) -> Ints:
    """The position of each token of requests [n] that have so many tokens in a step, the first at `computed`."""
    firsts = (computed - counts.cumsum() + counts).repeat(counts)
    positions: Ints = np.arange(len(firsts), dtype=np.int64) + firsts
    return positions
