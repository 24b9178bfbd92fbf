"""Which row and which steps each token of a batch takes: a pure function of its request's orders and its position."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pilothouse.core.messages import RequestOrders
from pilothouse.core.sites import Float32

NEVER = np.iinfo(np.int64).max
Ints = npt.NDArray[np.int64]


class SpanTable:
    """One line a request: its spans [start, stop) with their rows, its chain with the span of each step, and from where
    its readouts are wanted. edges: of each line, the positions where any of this changes.

    Line 0 belongs to requests without a plan: no spans, no steps, no readouts.
    """

    def __init__(self, max_spans: int, chain_steps: int, lines: int = 64) -> None:
        self.max_spans = max_spans
        self.chain_steps = chain_steps
        self._line: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 1
        self._allocate(lines)

    def __len__(self) -> int:
        return len(self._line)

    @property
    def capacity(self) -> int:
        """Lines that there is room for; it grows."""
        return len(self.read_from)

    def add(self, request_id: str, orders: RequestOrders) -> int:
        """Note where `request_id` finds its rows and steps; replaces an earlier line of the same request."""
        line = self._line.get(request_id) or self._new_line(request_id)
        self.start[line], self.stop[line], self.row[line] = 0, 0, 0
        for i, span in enumerate(orders.spans):
            self.start[line, i], self.stop[line, i] = span.start, span.stop
            self.row[line, i] = orders.rows[span.row]
        self.chain[line] = orders.chain
        self.step_start[line], self.step_stop[line] = 0, 0
        for k, step in enumerate(orders.steps):
            self.step_start[line, k], self.step_stop[line, k] = step.start, step.stop
        self.read_from[line] = orders.read_from if orders.columns else NEVER
        bounds = (self.start, self.stop, self.step_start, self.step_stop, self.read_from[:, None])
        self.edges[line] = np.concatenate([bound[line] for bound in bounds])
        return line

    def remove(self, request_id: str) -> int | None:
        """Forget `request_id`; the line that it had."""
        line = self._line.pop(request_id, None)
        if line is not None:
            self._free.append(line)
        return line

    def lines(self, request_ids: Sequence[str]) -> Ints:
        """The line of each request, 0 for those without a plan."""
        return np.fromiter((self._line.get(r, 0) for r in request_ids), dtype=np.int64, count=len(request_ids))

    def rows_at(self, lines: Ints, positions: Ints) -> Ints:
        """The edit row of each token, given its request's line and its absolute position; both [n_tokens]."""
        start, stop = self.start[lines], self.stop[lines]
        inside = (positions[:, None] >= start) & (positions[:, None] < stop)
        rows: Ints = np.einsum("ij,ij->i", inside, self.row[lines], dtype=np.int64)
        return rows

    def gains_at(self, lines: Ints, positions: Ints) -> Float32:
        """[n_tokens, chain_steps]: 1 where a step of the token's chain acts by its positions, gates aside."""
        inside = (positions[:, None] >= self.step_start[lines]) & (positions[:, None] < self.step_stop[lines])
        return inside.astype(np.float32)

    def _new_line(self, request_id: str) -> int:
        if self._free:
            line = self._free.pop()
        else:
            line, self._used = self._used, self._used + 1
            if line == len(self.read_from):
                self._allocate(2 * line)
        self._line[request_id] = line
        return line

    def _allocate(self, lines: int) -> None:
        self.start = self._grown("start", (lines, self.max_spans))
        self.stop = self._grown("stop", (lines, self.max_spans))
        self.row = self._grown("row", (lines, self.max_spans))
        self.step_start = self._grown("step_start", (lines, self.chain_steps))
        self.step_stop = self._grown("step_stop", (lines, self.chain_steps))
        self.chain = self._grown("chain", (lines,))
        self.read_from = self._grown("read_from", (lines,), NEVER)
        self.edges = self._grown("edges", (lines, 2 * (self.max_spans + self.chain_steps) + 1))

    def _grown(self, name: str, shape: tuple[int, ...], fill: int = 0) -> Ints:
        """The table `name` with room for more lines; what is in it stays."""
        table: Ints = np.full(shape, fill, dtype=np.int64)
        old = getattr(self, name, None)
        if old is not None:
            table[: len(old)] = old
        return table
