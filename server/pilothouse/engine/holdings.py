"""What the scheduler keeps of a request with a plan: what it holds, what it waits for, what has been read of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pilothouse.core.messages import Reading, StepCost, StepReadings, WirePlan, reading_encoder
from pilothouse.core.plans import END
from pilothouse.core.sites import Float32
from pilothouse.engine.score_store import BlockCollector

GATHERED = 32
"""Steps whose readings wait for one another at most, where nobody waits for them."""


@dataclass
class Held:
    """What a request holds from its admission until it is freed."""

    plan: WirePlan
    slot: int
    chain_key: bytes
    chain: int
    columns: tuple[int, ...]
    collector: BlockCollector | None
    stop_at: int = END
    stop_reason: str = ""

    def look(self, start: int, rows: Float32) -> None:
        """Note whether the readouts [n, readouts of the request] of positions [start, start + n) end the sequence."""
        for stop in self.plan.stops:
            seen, level = rows[:, stop.readout], np.float32(stop.level)
            met = np.flatnonzero(seen > level if stop.above else seen < level) + start
            met = met[(met >= stop.start) & (met < stop.stop)]
            if len(met) and met[0] < self.stop_at:
                self.stop_at, self.stop_reason = int(met[0]), f"probe:{stop.probe}"


class Lack(NamedTuple):
    """For want of what a request must wait."""

    slot: bool
    chain: bool
    columns: bool


@dataclass(frozen=True)
class Refusal:
    """When a waiting request was first refused, and what it lacked last."""

    step: int
    lack: Lack


class Heard:
    """One step's readings, cut up by request once for all of them.

    rejected: of how many draft tokens, the last ones of each request, the step ran in vain. They are not part of the
    sequence, so nothing of them is counted, looked at or sent.
    """

    def __init__(self, readings: StepReadings, rejected: Mapping[str, int]) -> None:
        self.scores = readings.scores
        self.edited = readings.edited
        # Most steps edit all of their tokens or none: then nobody need count them request by request.
        self._all_edited: bool | None = None
        if len(self.edited) and (self.edited.all() or not self.edited.any()):
            self._all_edited = bool(self.edited[0])
        begins = (np.cumsum(readings.counts) - readings.counts).tolist()
        rows = (np.cumsum(readings.scored) - readings.scored).tolist()
        numbers = (readings.starts.tolist(), readings.counts.tolist(), readings.scored.tolist(), begins, rows)
        self.parts: dict[str, Part] = {}
        for request_id, start, count, n_scored, begin, row in zip(readings.request_ids, *numbers, strict=True):
            surplus = rejected.get(request_id, 0) if rejected else 0
            first = start + count - n_scored
            self.parts[request_id] = Part(self, start, count - surplus, begin, first, max(n_scored - surplus, 0), row)

    def n_edited(self, begin: int, count: int) -> int:
        """How many of `count` positions, the first of them number `begin` of the step's, were edited."""
        if self._all_edited is not None:
            return count if self._all_edited else 0
        return int(self.edited[begin : begin + count].sum())


class Part(NamedTuple):
    """What a step reports of one request: positions [start, start + n), number `begin` of the step's and onward;
    readouts of the positions [first, first + n_scored), which are the step's rows from `row` on."""

    step: Heard
    start: int
    n: int
    begin: int
    first: int
    n_scored: int
    row: int

    def rows(self, columns: tuple[int, ...]) -> Float32:
        """The readouts [n_scored, len(columns)]."""
        return self.all_columns[:, columns]

    @property
    def all_columns(self) -> Float32:
        """The readouts [n_scored, readout columns of the engine]."""
        return self.step.scores[self.row : self.row + self.n_scored]

    def cut(self, end: int) -> "Part":
        """The same without positions from `end` on."""
        n = min(self.n, max(end - self.start, 0))
        return self._replace(n=n, n_scored=min(self.n_scored, max(end - self.first, 0)))


@dataclass
class Buffer:
    """Readings of a request that have not been sent: `kept`, readouts [n, readouts of the request] of its first
    positions, from the store beside the prefix cache; `parts`, of steps, in their order.

    columns: where its readouts are; gather: they may wait until the request ends.
    """

    columns: tuple[int, ...]
    gather: bool
    kept: list[Float32] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    cached: int = 0

    @property
    def due(self) -> bool:
        """Whether it goes with the next output, though the request has not ended."""
        return not self.gather or len(self.parts) >= GATHERED

    def cut(self, end: int) -> None:
        """Forget positions from `end` on: the sequence has ended before them."""
        self.parts = [part.cut(end) for part in self.parts if part.start < end]

    def encode(self, cost: StepCost) -> bytes:
        """As it travels to the API process, with what the steps of all requests have cost since one last did."""
        runs: list[tuple[int, int, int]] = []
        scored = [(0, len(rows)) for rows in self.kept]
        for part in self.parts:
            edited = part.step.n_edited(part.begin, part.n)
            if runs and part.start == runs[-1][0] + runs[-1][1]:
                start, count, before = runs[-1]
                runs[-1] = (start, count + part.n, before + edited)
            else:
                runs.append((part.start, part.n, edited))
            if not part.n_scored:
                continue
            if scored and part.first == sum(scored[-1]):
                scored[-1] = (scored[-1][0], scored[-1][1] + part.n_scored)
            else:
                scored.append((part.first, part.n_scored))
        tables = [part.all_columns for part in self.parts if part.n_scored]
        rows = [*self.kept, np.concatenate(tables)[:, self.columns]] if tables else self.kept
        scores = b"".join(np.ascontiguousarray(table).tobytes() for table in rows)
        return reading_encoder.encode(Reading(tuple(runs), tuple(scored), scores, self.cached, cost))
