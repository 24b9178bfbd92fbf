"""The worker's side of a step: which row each token of the batch takes, and the readings that come back.

The scheduler decides (orders), the board obeys: it fills banks by content digest, keeps one line of position spans per
request, and before each forward maps every token of the final batch order to its row and its chain. All of that is
numpy over whole batches; no Python runs per token, and only latched gates allocate on the device.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import rows_from_payload
from pilothouse.core.edits import Rule
from pilothouse.core.messages import ChainLoad, RowLoad, StepOrders, StepReadings, StepRepeat
from pilothouse.core.sites import Float32
from pilothouse.engine.batch import Batch
from pilothouse.engine.latches import Latches
from pilothouse.engine.sites import FULL, IDLE, Form, Site, StepBuffers
from pilothouse.engine.spans import Ints, SpanTable
from pilothouse.engine.token_buffer import TokenBuffer


class Board:
    """Owns the buffers of one worker."""

    def __init__(self, layout: EngineLayout, buffers: StepBuffers, sites: Mapping[int, Site]) -> None:
        self.layout = layout
        self.buffers = buffers
        on_host = buffers.scores.device.type == "cpu"
        self._host_scores: Float32 | None = buffers.scores.numpy() if on_host else None
        self.sites = dict(sorted(sites.items()))
        self.spans = SpanTable(2 * layout.rows_per_plan, layout.chain_steps)
        self.latches = Latches(layout.chain_steps, buffers.rows.device)
        self.directions: dict[bytes, dict[int, torch.Tensor]] = {}
        self.captures: dict[str, dict[int, list[Float32]]] = {}
        self._rows = TokenBuffer(buffers.rows)
        self._chains = TokenBuffer(buffers.chains)
        self._gains = TokenBuffer(buffers.gains)
        self.writes = bool(sites)
        self._last: Batch | None = None
        self._step: Batch | None = None
        self._prepared = 0.0

    def obey(self, orders: StepOrders) -> None:
        """Apply the scheduler's changes before the step that they belong to."""
        began = perf_counter()
        self._obey(orders)
        self._prepared += perf_counter() - began

    def _obey(self, orders: StepOrders) -> None:
        self._last = None
        for request_id in orders.retire:
            self.latches.clear(self.spans.remove(request_id))
        for digest in orders.forget:
            self.directions.pop(digest, None)
        for digest, payload in orders.directions.items():
            rows = rows_from_payload(payload)
            self.directions[digest] = {layer: torch.from_numpy(row.copy()) for layer, row in rows.items()}
        if orders.rows or orders.chains or orders.readouts:
            self._load(orders)
        for request_id, request in orders.requests.items():
            self.latches.set(self.spans.add(request_id, request), request)

    @torch.inference_mode()
    def _load(self, orders: StepOrders) -> None:
        """Fill what is to be filled of the banks."""
        for load in orders.rows:
            self._load_row(load)
        for chain in orders.chains:
            self._load_chain(chain)
        for readout in orders.readouts:
            rows_by_layer = self.directions[readout.direction]
            for layer, site in self.sites.items():
                row = rows_by_layer.get(layer)
                if row is None:
                    site.readouts[readout.column].zero_()
                else:
                    site.readouts[readout.column].copy_(row)

    def map_tokens(self, request_ids: Sequence[str], counts: npt.NDArray[Any], computed: npt.NDArray[Any]) -> None:
        """Write the row of every token of the step.

        request_ids: the batch in its final order; counts: tokens of each request in this step; computed: position of
        each request's first token in this step; both of any kind of integers.
        """
        last = self._last
        if last is None and self.buffers.needed is IDLE and not len(self.spans):
            # Nobody has a plan, nor had one in the step before.
            self._step = None
            return
        began = perf_counter()
        if last is None or not last.advance(request_ids, counts, computed):
            last = self._last = self._mapped(request_ids, counts.astype(np.int64), computed.astype(np.int64))
            self.buffers.needed = IDLE if last is None else last.needed
        self._step = last
        self._prepared += perf_counter() - began

    def _mapped(self, request_ids: Sequence[str], counts: Ints, computed: Ints) -> Batch | None:
        if not len(self.spans) and not self.layout.capture:
            self.reset_rows()
            return None
        lines = self.spans.lines(request_ids)
        if not np.count_nonzero(lines) and not self.layout.capture:
            self.reset_rows()
            return None
        taken, near = self.spans.taken(lines, counts, computed)
        self._rows.write(taken.rows)
        edited = taken.rows > 0
        edits = bool(np.count_nonzero(edited))
        if taken.chained is None:
            self._clear_chains()
        else:
            chains, gains = taken.chained
            self._chains.write(chains)
            self._gains.write(gains)
            self.latches.close_gains(self.buffers.gains[: len(edited)], lines, counts, computed)
            edited |= gains.any(axis=1)
        # A chain's gates look at readouts, also at positions whose readouts nobody wants.
        chained = taken.chained is not None
        needed = Form(edits, chained or bool(np.count_nonzero(taken.reads)), chained)
        # Latches change what tokens take without their positions passing anything.
        steady = len(edited) == len(counts) and not self.latches.used
        return Batch(
            request_ids,
            counts,
            computed,
            planned=lines > 0,
            edited=edited,
            reads=taken.reads,
            needed=FULL if self.layout.capture else needed,
            steps_left=near - 1 if steady else 0,
        )

    def reset(self, needed: Form = FULL) -> None:
        """Make ready for a run without requests: nothing is edited, and no sum goes on from an earlier run.

        needed: as if it needed this of the sites.
        """
        self.reset_rows()
        self.buffers.needed = needed
        self.buffers.scores.zero_()

    def reset_rows(self) -> None:
        """Make every token untouched; padding relies on it."""
        self._last = None
        self._rows.clear()
        self._clear_chains()

    def take_over(self, scores: torch.Tensor | None) -> None:
        """Begin a step behind an earlier pipeline stage, with the readouts [n_tokens, readouts] of its layers.

        None where it read nothing. This stage's sites add to what is here, so what an earlier step left must go, also
        from rows that are only padding.
        """
        self.buffers.scores.zero_()
        self.writes = bool(self.sites) or scores is not None
        if scores is not None:
            self.buffers.scores[: len(scores)].copy_(scores, non_blocking=True)

    def hand_on(self) -> torch.Tensor | None:
        """What the next pipeline stage is to `take_over`; ends this stage's part of the step."""
        step, self._step = self._step, None
        if step is None:
            return None
        self._look_at(step)
        # Where no stage so far has a site, nothing was written, and what is there means nothing.
        if not self.writes or not step.planned:
            return None
        return self.buffers.scores[: step.n_tokens].clone()

    def readings(self) -> StepReadings | StepRepeat | None:
        """What the step just run gave for the requests that have a plan; None when there were none."""
        if self._host_scores is None:
            pending = self.start_reading()
            return None if pending is None else pending.take()
        began = perf_counter()
        ended = self._end_step()
        if ended is None:
            return None
        step, prepared = ended
        scores = self._host_scores[: step.n_tokens] if step.reads_any else None
        return step.told(step.advanced, scores, prepared, perf_counter() - began)

    def start_reading(self) -> "PendingReadings | None":
        """Begin to copy out what the step just run gave; None when it ran no request with a plan.

        On a GPU the copy is queued behind the step, before the next one may overwrite the scores, and nobody waits.
        """
        began = perf_counter()
        ended = self._end_step()
        if ended is None:
            return None
        step, prepared = ended
        scores = self.buffers.scores[: step.n_tokens] if step.reads_any else None
        return PendingReadings(step, scores, prepared, began)

    def take_captures(self) -> dict[str, dict[int, Float32]]:
        """The streams kept since the last call: by request and layer, [n_tokens, d_model] float32."""
        taken, self.captures = self.captures, {}
        return {
            request: {layer: np.concatenate(parts) for layer, parts in layers.items()}
            for request, layers in taken.items()
        }

    def _load_row(self, load: RowLoad) -> None:
        for layer, site in self.sites.items():
            parts = [
                edit.coefficients[layer] * self.directions[edit.direction][layer]
                for edit in load.edits
                if layer in edit.coefficients
            ]
            if parts:
                site.edits[load.row].copy_(torch.stack(parts).sum(dim=0))
            else:
                site.edits[load.row].zero_()

    def _load_chain(self, load: ChainLoad) -> None:
        for layer, site in self.sites.items():
            site.bank.clear(load.chain)
            for k, step in enumerate(load.steps):
                if layer not in step.rules:
                    continue
                gate = step.gate
                site.bank.load(
                    load.chain,
                    k,
                    Rule(*step.rules[layer]),
                    self.directions[step.reader or step.direction][layer],
                    self.directions[step.direction][layer],
                    preserve_norm=step.preserve_norm,
                    gate=None if gate is None or gate.latched else (load.columns[k], gate.above, gate.level),
                )

    def _clear_chains(self) -> None:
        self._chains.clear()
        self._gains.clear()

    def _end_step(self) -> tuple[Batch, float] | None:
        """The step just run and the seconds that it took to prepare it; None when it ran no request with a plan."""
        step, self._step = self._step, None
        if step is None:
            return None
        self._look_at(step)
        if not step.planned:
            return None
        prepared, self._prepared = self._prepared, 0.0
        return step, prepared

    def _look_at(self, step: Batch) -> None:
        """Take what this worker itself wants of the step just run."""
        self.latches.update(self.buffers.scores)
        if self.layout.capture:
            self._keep_captures(step)

    def _keep_captures(self, step: Batch) -> None:
        for i, request_id in enumerate(step.request_ids):
            begin, end = int(step.offsets[i]), int(step.offsets[i] + step.counts[i])
            kept = self.captures.setdefault(request_id, {layer: [] for layer in self.sites})
            for layer, site in self.sites.items():
                kept[layer].append(site.captured[begin:end].cpu().numpy().copy())


class PendingReadings:
    """Readings whose scores may still be on their way from the device."""

    def __init__(
        self,
        batch: Batch,
        scores: torch.Tensor | None,
        prepared: float,
        began: float,
    ) -> None:
        """scores: [n_tokens, readout columns] of the step's tokens, None where none is wanted; prepared: seconds that
        it took to prepare the step; began: when reading did, by the performance counter."""
        self._batch = batch
        self._advanced = batch.advanced
        self._prepared = prepared
        self._copied: torch.cuda.Event | None = None
        # On the CPU a clone: the next step overwrites the scores. From a GPU this is a queued copy to pinned memory.
        self._scores = None if scores is None else scores.to("cpu", non_blocking=True, copy=True)
        if scores is not None and scores.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._spent = perf_counter() - began

    def take(self) -> StepReadings | StepRepeat:
        """The readings, complete; waits for the copy, which is not counted among their cost."""
        if self._copied is not None:
            self._copied.synchronize()
        scores = None if self._scores is None else self._scores.numpy()
        return self._batch.told(self._advanced, scores, self._prepared, self._spent)
