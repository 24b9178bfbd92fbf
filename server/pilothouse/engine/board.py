"""The worker's side of a step: which row each token of the batch takes, and the readings that come back.

The scheduler decides (orders), the board obeys: it fills banks by content digest, keeps one line of position spans per
request, and before each forward maps every token of the final batch order to its row. All of that is numpy over whole
batches; no Python runs per token, and nothing is allocated on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pilothouse.core.config import EngineLayout
from pilothouse.core.messages import RequestOrders, SlotLoad, StepOrders, StepReadings
from pilothouse.core.plans import rows_from_payload
from pilothouse.core.sites import Float32
from pilothouse.engine.sites import Site, StepBuffers

NEVER = np.iinfo(np.int64).max
NO_SCORES = np.empty((0, 0), dtype=np.float32)
Ints = npt.NDArray[np.int64]


class SpanTable:
    """One line a request: its spans [start, stop) with their rows, and from where its readouts are wanted.

    Line 0 belongs to requests without a plan: no spans, no readouts.
    """

    def __init__(self, max_spans: int, lines: int = 64) -> None:
        self.max_spans = max_spans
        self._line: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 1
        self._allocate(lines)

    def __len__(self) -> int:
        return len(self._line)

    def add(self, request_id: str, orders: RequestOrders, first_row: int) -> None:
        """Note where `request_id` finds its rows; replaces an earlier line of the same request."""
        line = self._line.get(request_id) or self._new_line(request_id)
        self.start[line], self.stop[line], self.row[line] = 0, 0, 0
        for i, span in enumerate(orders.spans):
            self.start[line, i], self.stop[line, i] = span.start, span.stop
            self.row[line, i] = first_row + span.row
        self.read_from[line] = orders.read_from if orders.columns else NEVER

    def remove(self, request_id: str) -> None:
        line = self._line.pop(request_id, None)
        if line is not None:
            self._free.append(line)

    def lines(self, request_ids: Sequence[str]) -> Ints:
        """The line of each request, 0 for those without a plan."""
        return np.fromiter((self._line.get(r, 0) for r in request_ids), dtype=np.int64, count=len(request_ids))

    def rows_at(self, lines: Ints, positions: Ints) -> Ints:
        """The edit row of each token, given its request's line and its absolute position; both [n_tokens]."""
        start, stop = self.start[lines], self.stop[lines]
        inside = (positions[:, None] >= start) & (positions[:, None] < stop)
        rows: Ints = np.einsum("ij,ij->i", inside, self.row[lines], dtype=np.int64)
        return rows

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
        shape = (lines, self.max_spans)
        fresh = {name: np.zeros(shape, dtype=np.int64) for name in ("start", "stop", "row")}
        read_from = np.full(lines, NEVER, dtype=np.int64)
        if self._used > 1:
            for name, table in fresh.items():
                table[: self._used - 1] = getattr(self, name)[: self._used - 1]
            read_from[: self._used - 1] = self.read_from[: self._used - 1]
        self.start: Ints = fresh["start"]
        self.stop: Ints = fresh["stop"]
        self.row: Ints = fresh["row"]
        self.read_from: Ints = read_from


class Board:
    """Owns the buffers of one worker."""

    def __init__(self, layout: EngineLayout, buffers: StepBuffers, sites: Mapping[int, Site]) -> None:
        self.layout = layout
        self.buffers = buffers
        self.sites = dict(sorted(sites.items()))
        self.spans = SpanTable(max_spans=2 * layout.rows_per_slot)
        self.directions: dict[bytes, dict[int, torch.Tensor]] = {}
        self.captures: dict[str, dict[int, list[Float32]]] = {}
        self._rows_set = 0
        self._step: _Step | None = None

    @torch.inference_mode()
    def obey(self, orders: StepOrders) -> None:
        """Apply the scheduler's changes before the step that they belong to."""
        for request_id in orders.retire:
            self.spans.remove(request_id)
        for digest in orders.forget:
            self.directions.pop(digest, None)
        for digest, payload in orders.directions.items():
            rows = rows_from_payload(payload)
            self.directions[digest] = {layer: torch.from_numpy(row.copy()) for layer, row in rows.items()}
        for load in orders.slots:
            self._load_slot(load)
        for readout in orders.readouts:
            rows_by_layer = self.directions[readout.direction]
            for layer, site in self.sites.items():
                row = rows_by_layer.get(layer)
                if row is None:
                    site.readouts[readout.column].zero_()
                else:
                    site.readouts[readout.column].copy_(row)
        for request_id, request in orders.requests.items():
            self.spans.add(request_id, request, self.layout.first_row(request.slot))

    def map_tokens(self, request_ids: Sequence[str], counts: Ints, computed: Ints) -> None:
        """Write the row of every token of the step.

        request_ids: the batch in its final order; counts: tokens of each request in this step; computed: position of
        each request's first token in this step.
        """
        self._step = None
        if not len(self.spans) and not self.layout.capture:
            self.reset_rows()
            return
        lines = self.spans.lines(request_ids)
        planned = np.flatnonzero(lines)
        if not len(planned) and not self.layout.capture:
            self.reset_rows()
            return
        offsets = np.cumsum(counts) - counts
        n_tokens = int(counts.sum())
        token_lines = np.repeat(lines, counts)
        positions = np.arange(n_tokens, dtype=np.int64) + np.repeat(computed - offsets, counts)
        rows = self.spans.rows_at(token_lines, positions)
        self._write_rows(rows)
        self._step = _Step(request_ids, planned, counts, computed, offsets, rows, token_lines, positions)

    def reset_rows(self) -> None:
        """Make every token untouched; dummy runs, padding and graph capture rely on it."""
        if self._rows_set:
            self.buffers.rows[: self._rows_set].zero_()
            self._rows_set = 0

    def readings(self) -> StepReadings | None:
        """What the step just run gave for the requests that have a plan; None when there were none."""
        pending = self.start_reading()
        return None if pending is None else pending.take()

    def start_reading(self) -> "PendingReadings | None":
        """Begin to copy out what the step just run gave; None when it ran no request with a plan.

        On a GPU the copy is queued behind the step, before the next one may overwrite the scores, and nobody waits.
        """
        step, self._step = self._step, None
        if step is None:
            return None
        if self.layout.capture:
            self._keep_captures(step)
        if not len(step.planned):
            return None
        read_from = self.spans.read_from[step.token_lines]
        wanted = step.positions >= read_from
        edited = np.add.reduceat((step.rows > 0).astype(np.int64), step.offsets)
        kept = np.add.reduceat(wanted.astype(np.int64), step.offsets)
        pick = step.planned
        readings = StepReadings(
            request_ids=[step.request_ids[i] for i in pick],
            starts=step.computed[pick],
            counts=step.counts[pick],
            edited=edited[pick],
            scored=kept[pick],
            scores=NO_SCORES,
        )
        return PendingReadings(readings, self.buffers.scores[: len(wanted)], wanted)

    def take_captures(self) -> dict[str, dict[int, Float32]]:
        """The streams kept since the last call: by request and layer, [n_tokens, d_model] float32."""
        taken, self.captures = self.captures, {}
        return {
            request: {layer: np.concatenate(parts) for layer, parts in layers.items()}
            for request, layers in taken.items()
        }

    def _load_slot(self, load: SlotLoad) -> None:
        first = self.layout.first_row(load.slot)
        for layer, site in self.sites.items():
            bank = site.edits[first : first + self.layout.rows_per_slot]
            bank.zero_()
            for i, edits in enumerate(load.rows):
                parts = [
                    edit.coefficients[layer] * self.directions[edit.direction][layer]
                    for edit in edits
                    if layer in edit.coefficients
                ]
                if parts:
                    bank[i].copy_(torch.stack(parts).sum(dim=0))

    def _write_rows(self, rows: Ints) -> None:
        n_tokens = len(rows)
        if self._rows_set > n_tokens:
            self.buffers.rows[n_tokens : self._rows_set].zero_()
        staged = torch.from_numpy(rows)
        if self.buffers.rows.is_cuda:
            # Fresh pinned memory, which PyTorch keeps until the copy is done: steps that run ahead never share it.
            staged = staged.pin_memory()
        self.buffers.rows[:n_tokens].copy_(staged, non_blocking=True)
        self._rows_set = n_tokens

    def _keep_captures(self, step: "_Step") -> None:
        for i, request_id in enumerate(step.request_ids):
            begin, end = int(step.offsets[i]), int(step.offsets[i] + step.counts[i])
            kept = self.captures.setdefault(request_id, {layer: [] for layer in self.sites})
            for layer, site in self.sites.items():
                kept[layer].append(site.captured[begin:end].cpu().numpy().copy())


class PendingReadings:
    """Readings whose scores may still be on their way from the device."""

    def __init__(self, readings: StepReadings, scores: torch.Tensor, wanted: npt.NDArray[np.bool_]) -> None:
        """scores: [n_tokens, readout columns] of the step's tokens; wanted: which of these rows are sent back."""
        self._readings = readings
        self._wanted = wanted
        self._copied: torch.cuda.Event | None = None
        # On the CPU a clone: the next step overwrites the scores. From a GPU this is a queued copy to pinned memory.
        self._scores = scores.to("cpu", non_blocking=True, copy=True)
        if scores.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def take(self) -> StepReadings:
        """The readings, complete; waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return replace(self._readings, scores=self._scores.numpy()[self._wanted])


class _Step:
    """The batch as it was mapped, until its readings are taken."""

    __slots__ = ("computed", "counts", "offsets", "planned", "positions", "request_ids", "rows", "token_lines")

    def __init__(
        self,
        request_ids: Sequence[str],
        planned: Ints,
        counts: Ints,
        computed: Ints,
        offsets: Ints,
        rows: Ints,
        token_lines: Ints,
        positions: Ints,
    ) -> None:
        self.request_ids = list(request_ids)
        self.planned = planned
        self.counts = counts
        self.computed = computed
        self.offsets = offsets
        self.rows = rows
        self.token_lines = token_lines
        self.positions = positions
