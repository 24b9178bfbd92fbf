"""The batch of a step, as the worker mapped it: what each token belongs to, and what its readings say beside scores.

Decoding repeats a batch: the same requests, each one token further. As long as no token passes a boundary where its
row, its steps or the reading of it change, everything but the positions stays, and a step costs three comparisons.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.messages import StepCost, StepReadings, StepRepeat
from pilothouse.core.sites import Float32
from pilothouse.engine.sites import Form
from pilothouse.engine.spans import Bools, Ints


class Batch:
    """request_ids: the batch in its final order; counts: tokens of each request in this step; computed: position of
    each request's first token in the step it was made for; planned: whether each has a plan; edited, reads: of each
    token, whether it is edited and whether its readouts are wanted."""

    def __init__(
        self,
        request_ids: Sequence[str],
        counts: Ints,
        computed: Ints,
        *,
        planned: Bools,
        edited: Bools,
        reads: Bools,
        needed: Form,
        steps_left: int,
    ) -> None:
        """needed: what the step needs of the sites; steps_left: how many next steps may only advance this one."""
        self.request_ids = list(request_ids)
        self.counts = counts
        self.n_tokens = len(edited)
        self.planned = bool(np.count_nonzero(planned))
        """Whether a request of it has a plan."""
        self._planned = planned
        self._computed = computed
        self._edited = edited
        self._wanted = reads
        n_reads = np.count_nonzero(reads)
        self._reads = None if n_reads == self.n_tokens else reads.nonzero()[0]
        self.reads_any = n_reads > 0
        self.needed = needed
        self._steps_left = steps_left
        self._number, self.advanced = next(_numbers), 0
        # As runners give them, whose integers may be narrower: a step is compared by bytes, which no other way of
        # comparing whole arrays comes near to while nothing of numpy is in the processor's cache.
        self._next_computed: npt.NDArray[Any] | None = None
        self._one_each = b""
        self._said = False
        """Whether the scheduler has been told of this batch."""

    @cached_property
    def offsets(self) -> Ints:
        """Where each request's tokens begin."""
        begins: Ints = self.counts.cumsum() - self.counts
        return begins

    def advance(self, request_ids: Sequence[str], counts: npt.NDArray[Any], computed: npt.NDArray[Any]) -> bool:
        """Become the next step where that is this one with every request a token further; else False."""
        if self._steps_left <= 0 or request_ids != self.request_ids:
            return False
        if self._next_computed is None:
            self._one_each = np.ones_like(counts).tobytes()
            self._next_computed = (self._computed + 1).astype(computed.dtype)
        if counts.tobytes() != self._one_each or computed.tobytes() != self._next_computed.tobytes():
            return False
        self._steps_left -= 1
        self.advanced += 1
        self._next_computed += 1
        return True

    def told(self, advanced: int, scores: Float32 | None, prepare: float, read: float) -> StepReadings | StepRepeat:
        """What the step `advanced` positions on ran for the requests with a plan, as the scheduler is to hear it.

        scores: [n_tokens, readout columns], None where none is wanted; prepare, read: as of `StepCost`.
        """
        wanted = NO_SCORES if scores is None else scores if self._reads is None else scores[self._reads]
        if self._said:
            return self._number, advanced, wanted.tobytes(), prepare, read
        self._said = True
        ids, starts, counts, edited = self.request_ids, self._computed, self.counts, self._edited
        scored = (
            np.add.reduceat(self._wanted, self.offsets, dtype=np.int64) if self.reads_any else np.zeros_like(counts)
        )
        mine = self._planned.nonzero()[0]
        if len(mine) < len(ids):
            ids, starts, scored = [ids[k] for k in mine], starts[mine], scored[mine]
            counts, edited = counts[mine], edited[self._planned.repeat(counts)]
        return StepReadings(
            request_ids=ids,
            starts=starts + advanced,
            counts=counts,
            edited=edited,
            scored=scored,
            scores=wanted.copy(),
            cost=StepCost(1, prepare, read),
            batch=self._number,
            advanced=advanced,
        )


NO_SCORES: Float32 = np.empty((0, 0), dtype=np.float32)
_numbers = itertools.count(1)
