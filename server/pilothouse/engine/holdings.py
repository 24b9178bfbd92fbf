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
    rows: tuple[int, ...]
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

    rows: bool
    chain: bool
    columns: bool


@dataclass(frozen=True)
class Refusal:
    """When a waiting request was first refused, and what it lacked last."""

    step: int
    lack: Lack


class Stretches:
    """What a step ran, cut up by request: lists, one entry a request. Steps that repeat one another share it.

    Request k ran counts[k] positions from starts[k]; the readouts of its positions from firsts[k] on are scored[k] rows
    of the step's from rows[k] on. rejected: of how many draft tokens, the last ones of each request, the step ran in
    vain. They are not part of the sequence, so nothing of them is counted, looked at or sent.
    """

    def __init__(self, readings: StepReadings, rejected: Mapping[str, int]) -> None:
        self.request_ids = readings.request_ids
        self.batch = readings.batch
        surplus = [rejected.get(request_id, 0) for request_id in self.request_ids]
        self.starts: list[int] = (readings.starts - readings.advanced).tolist()
        self.firsts: list[int] = (readings.starts - readings.advanced + readings.counts - readings.scored).tolist()
        self.rows: list[int] = (np.cumsum(readings.scored) - readings.scored).tolist()
        self.counts: list[int] = (readings.counts - surplus).tolist()
        self.scored: list[int] = np.maximum(readings.scored - surplus, 0).tolist()
        self._edited = readings.edited
        self._begins: list[int] = (np.cumsum(readings.counts) - readings.counts).tolist()
        self._n_edited = [self._count(k, n) for k, n in enumerate(self.counts)]

    def n_edited(self, k: int, n: int) -> int:
        """How many of the first `n` positions of request `k` were edited."""
        return self._n_edited[k] if n == self.counts[k] else self._count(k, n)

    def _count(self, k: int, n: int) -> int:
        return int(np.count_nonzero(self._edited[self._begins[k] : self._begins[k] + n]))


class Heard(NamedTuple):
    """The readings of one step: `of`, `advanced` positions further, with these scores [rows, readout columns]."""

    of: Stretches
    advanced: int
    scores: Float32

    def first(self, k: int) -> int:
        """The first position of request `k` that was read."""
        return self.of.firsts[k] + self.advanced

    def read(self, k: int, n: int) -> Float32:
        """The readouts [n, readout columns] of the first n positions of request `k` that were read."""
        return self.scores[self.of.rows[k] : self.of.rows[k] + n]


@dataclass
class Buffer:
    """Readings of a request that have not been sent: `kept`, readouts [n, readouts of the request] of its first
    positions, from the store beside the prefix cache; `parts`, of steps, in their order, with its number in each.

    columns: where its readouts are; gather: they may wait until the request ends; end: no position from here on is part
    of the sequence.
    """

    columns: tuple[int, ...]
    gather: bool
    kept: list[Float32] = field(default_factory=list)
    parts: list[tuple[Heard, int]] = field(default_factory=list)
    cached: int = 0
    end: int = END

    @property
    def due(self) -> bool:
        """Whether it goes with the next output, though the request has not ended."""
        return not self.gather or len(self.parts) >= GATHERED

    def encode(self, cost: StepCost) -> bytes:
        """As it travels to the API process, with what the steps of all requests have cost since one last did."""
        runs: list[tuple[int, int, int]] = []
        scored = [(0, len(rows)) for rows in self.kept]
        tables = []
        for heard, k in self.parts:
            of = heard.of
            start, first = of.starts[k] + heard.advanced, heard.first(k)
            n = min(of.counts[k], self.end - start)
            if n <= 0:
                continue
            edited = of.n_edited(k, n)
            if runs and start == runs[-1][0] + runs[-1][1]:
                begun, before, edited_before = runs[-1]
                runs[-1] = (begun, before + n, edited_before + edited)
            else:
                runs.append((start, n, edited))
            n_scored = min(of.scored[k], self.end - first)
            if n_scored <= 0:
                continue
            tables.append(heard.read(k, n_scored))
            if scored and first == scored[-1][0] + scored[-1][1]:
                scored[-1] = (scored[-1][0], scored[-1][1] + n_scored)
            else:
                scored.append((first, n_scored))
        rows = [*self.kept, np.concatenate(tables)[:, self.columns]] if tables else self.kept
        scores = b"".join(np.ascontiguousarray(table).tobytes() for table in rows)
        return reading_encoder.encode(Reading(tuple(runs), tuple(scored), scores, self.cached, cost))
