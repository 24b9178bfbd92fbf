"""What has been read of requests and not been sent on yet: steps as the worker told them, and who has a part in which.

Decoding repeats a step, with every request a position further. Such steps are one run, to which each of them adds its
readouts as they came; only when something is sent is it worked out whose they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pilothouse.core.messages import LiveReadings, Reading, StepCost, StepReadings, reading_encoder
from pilothouse.core.plans import END
from pilothouse.core.sites import Float32
from pilothouse.engine.holdings import Held

GATHERED = 32
"""Steps whose readings wait for one another at most, where nobody waits for them."""


def _listed(numbers: npt.NDArray[np.int64]) -> list[int]:
    found: list[int] = numbers.tolist()
    return found


class Stretches:
    """What a step ran, cut up by request: lists, one entry a request. Steps that repeat one another share it.

    Request k ran counts[k] positions from starts[k]; the readouts of its positions from firsts[k] on are scored[k] rows
    of the step's from rows[k] on. rejected: of how many draft tokens, the last ones of each request, the step ran in
    vain. They are not part of the sequence, so nothing of them is counted, looked at or sent.
    """

    def __init__(self, readings: StepReadings, rejected: Mapping[str, int]) -> None:
        self.request_ids = readings.request_ids
        self.batch = readings.batch
        self._first = readings.starts - readings.advanced
        self._ran, self._read, self._edited = readings.counts, readings.scored, readings.edited
        self._surplus = [rejected.get(request_id, 0) for request_id in self.request_ids] if rejected else 0

    # Worked out once they are asked for, which mostly is when something is sent: a step whose requests are not those of
    # the step before is waited for like any other.

    @cached_property
    def n_rows(self) -> int:
        return int(self._read.sum())

    @cached_property
    def starts(self) -> list[int]:
        return _listed(self._first)

    @cached_property
    def firsts(self) -> list[int]:
        return _listed(self._first + self._ran - self._read)

    @cached_property
    def rows(self) -> list[int]:
        return _listed(np.cumsum(self._read) - self._read)

    @cached_property
    def counts(self) -> list[int]:
        return _listed(self._ran - self._surplus)

    @cached_property
    def scored(self) -> list[int]:
        return _listed(np.maximum(self._read - self._surplus, 0))

    @cached_property
    def _begins(self) -> list[int]:
        return _listed(np.cumsum(self._ran) - self._ran)

    @cached_property
    def _n_edited(self) -> list[int]:
        return [self._count(k, n) for k, n in enumerate(self.counts)]

    def n_edited(self, k: int, n: int) -> int:
        """How many of the first `n` positions of request `k` were edited."""
        return self._n_edited[k] if n == self.counts[k] else self._count(k, n)

    def _count(self, k: int, n: int) -> int:
        return int(np.count_nonzero(self._edited[self._begins[k] : self._begins[k] + n]))


class Run:
    """Steps that repeat one another: `of`, first `advanced` positions further, then each one more. Requests refer to
    it, so that a step costs no more than to keep its readouts here.

    scores: of each step, the bytes of [rows, readout columns] float32.
    """

    def __init__(self, of: Stretches, advanced: int) -> None:
        self.of = of
        self.advanced = advanced
        self.scores: list[bytes] = []
        self.watched: list[tuple[int, Held]] = []
        """Requests whose readouts the scheduler looks at itself, by their number in a step."""
        self.room = GATHERED
        """Steps after which a request has gathered enough."""
        self.live: Mapping[int, Sequence[Live]] | None = None
        """By client, those who are told of each step at once; None until they are looked for."""
        self._table = NOTHING

    @property
    def next(self) -> int:
        """How much further than `of` the next step is."""
        return self.advanced + len(self.scores)

    def newest(self) -> Float32:
        """The readouts [rows, readout columns] of the last step."""
        found: Float32 = self._tabled(self.scores[-1:])[0]
        return found

    def read(self, k: int, begin: int, end: int | None) -> Float32:
        """The readouts [n, readout columns] of request `k` in the steps [begin, end)."""
        if len(self._table) != len(self.scores):
            # Requests that end together have it in common.
            self._table = self._tabled(self.scores)
        found = self._table[begin:end, self.of.rows[k] : self.of.rows[k] + self.of.scored[k]]
        return found.reshape(found.shape[0] * found.shape[1], found.shape[2])

    def _tabled(self, scores: list[bytes]) -> Float32:
        numbers = np.frombuffer(b"".join(scores), dtype=np.float32)
        return numbers.reshape(len(scores), self.of.n_rows, -1 if len(numbers) else 0)


class Live:
    """Requests of one client that are told of every step of a run at once, each of which reads one row of each of them,
    or none. members: their numbers in a step; columns: where the readouts of each of them are."""

    def __init__(self, of: Stretches, members: Sequence[int], columns: tuple[int, ...]) -> None:
        self.members = members
        self._ids = tuple(of.request_ids[k] for k in members)
        self._starts = tuple(of.starts[k] for k in members)
        self._edited = tuple(of.n_edited(k, 1) for k in members)
        read = all(of.scored[k] for k in members)
        self._places = np.ix_([of.rows[k] for k in members], columns) if read else None

    def told(self, run: Run, cost: StepCost) -> LiveReadings:
        """What the last step of `run` read of them."""
        scores = b"" if self._places is None else run.newest()[self._places].tobytes()
        return LiveReadings(self._ids, self._starts, self._edited, run.next - 1, scores, cost)


class Part(NamedTuple):
    """The steps [begin, end) of a run, of which a request has this number there; without an end, all from `begin`
    on."""

    run: Run
    k: int
    begin: int = 0
    end: int | None = None

    @property
    def n_steps(self) -> int:
        return (len(self.run.scores) if self.end is None else self.end) - self.begin


@dataclass
class Buffer:
    """Readings of a request that have not been sent: `kept`, readouts [n, readouts of the request] of its first
    positions, from the store beside the prefix cache; `parts`, of steps, in their order.

    columns: where its readouts are; gather: they may wait until the request ends; end: no position from here on is part
    of the sequence.
    """

    columns: tuple[int, ...]
    gather: bool
    kept: list[Float32] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    cached: int = 0
    end: int = END

    @property
    def n_steps(self) -> int:
        return sum(part.n_steps for part in self.parts)

    @property
    def due(self) -> bool:
        """Whether it goes with the next output, though the request has not ended."""
        return not self.gather or self.n_steps >= GATHERED

    def encode(self, cost: StepCost) -> bytes:
        """As it travels to the API process, with what the steps of all requests have cost since one last did."""
        runs: list[tuple[int, int, int]] = []
        scored = [(0, len(rows)) for rows in self.kept]
        tables = []
        for part in self.parts:
            run, k, begin, end = part
            of, n_steps = run.of, part.n_steps
            further = run.advanced + begin
            # Where there is more than one step, each of them is of one position.
            start, n = of.starts[k] + further, of.counts[k] * n_steps
            n = min(n, self.end - start)
            if n <= 0:
                continue
            edited = of.n_edited(k, n) if n_steps == 1 else n * of.n_edited(k, 1)
            if runs and start == runs[-1][0] + runs[-1][1]:
                begun, before, edited_before = runs[-1]
                runs[-1] = (begun, before + n, edited_before + edited)
            else:
                runs.append((start, n, edited))
            first = of.firsts[k] + further
            n_scored = min(of.scored[k] * n_steps, self.end - first)
            if n_scored <= 0:
                continue
            tables.append(run.read(k, begin, end)[:n_scored])
            if scored and first == scored[-1][0] + scored[-1][1]:
                scored[-1] = (scored[-1][0], scored[-1][1] + n_scored)
            else:
                scored.append((first, n_scored))
        rows = [*self.kept, np.concatenate(tables)[:, self.columns]] if tables else self.kept
        scores = b"".join(np.ascontiguousarray(table).tobytes() for table in rows)
        return reading_encoder.encode(Reading(tuple(runs), tuple(scored), scores, self.cached, cost))


NOTHING: Float32 = np.empty((0, 0, 0), dtype=np.float32)
