"""The batch of a step, as the worker mapped it: what each token belongs to, and what its readings say beside scores.

Decoding repeats a batch: the same requests, each one token further. As long as no token passes a boundary where its
row, its steps or the reading of it change, everything but the positions stays, and a step costs two comparisons.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pilothouse.core.messages import StepCost, StepReadings
from pilothouse.core.sites import Float32
from pilothouse.engine.sites import Form
from pilothouse.engine.spans import NEVER, Ints, SpanTable


class Batch:
    """request_ids: the batch in its final order; counts: tokens of each request in this step; computed: position of
    each request's first token in this step; token_lines, positions, edited: of each token; reads: whether a token's
    readouts are wanted."""

    def __init__(
        self,
        request_ids: Sequence[str],
        counts: Ints,
        computed: Ints,
        *,
        token_lines: Ints,
        positions: Ints,
        edited: npt.NDArray[np.bool_],
        reads: npt.NDArray[np.bool_],
        needed: Form,
        steps_left: int,
    ) -> None:
        """needed: what the step needs of the sites; steps_left: how many next steps may only advance this one."""
        self.request_ids = list(request_ids)
        self.counts = counts
        self.computed = computed
        self.token_lines = token_lines
        self.positions = positions
        self.offsets = np.cumsum(counts) - counts
        planned = token_lines[self.offsets] > 0
        self._pick = np.flatnonzero(planned)
        self._ids = [self.request_ids[i] for i in self._pick]
        self._counts = counts[self._pick]
        self._edited = edited[token_lines > 0]
        self._scored = np.add.reduceat(reads.astype(np.int64), self.offsets)[self._pick]
        self.reads = None if reads.all() else reads
        self.reads_any = bool(reads.any())
        self.needed = needed
        self._steps_left = steps_left
        self._number, self._advanced = next(_numbers), 0
        self.said = False
        """Whether the scheduler has been told of this batch."""

    @property
    def planned(self) -> bool:
        """Whether a request of it has a plan."""
        return bool(self._ids)

    def advance(self, request_ids: Sequence[str], counts: Ints, computed: Ints) -> bool:
        """Become the next step where that is this one with every request a token further; else False."""
        if (
            self._steps_left <= 0
            or request_ids != self.request_ids
            or (counts != 1).any()
            or (computed != self.computed + 1).any()
        ):
            return False
        self._steps_left -= 1
        self._advanced += 1
        # Not in place: readings on their way still name the old ones.
        self.computed, self.positions = computed, self.positions + 1
        return True

    def readings(self) -> StepReadings:
        """What this step ran for the requests with a plan, scores and cost not yet filled in."""
        return StepReadings(
            request_ids=self._ids,
            starts=self.computed[self._pick],
            counts=self._counts,
            edited=self._edited,
            scored=self._scored,
            scores=NO_SCORES,
            cost=NO_COST,
            batch=self._number,
            advanced=self._advanced,
            said=self.said,
        )


NO_SCORES: Float32 = np.empty((0, 0), dtype=np.float32)
NO_COST = StepCost()
_numbers = itertools.count(1)


def steps_until_change(spans: SpanTable, token_lines: Ints, positions: Ints) -> int:
    """How many steps, each one position further, find every token's row, steps and reading as they are now."""
    far = NEVER - 1
    edges = spans.edges[token_lines]
    ahead = np.where(edges > positions[:, None], edges - positions[:, None], far)
    return int(ahead.min(initial=far)) - 1
