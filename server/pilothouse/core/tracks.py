"""What the engine reported about one request, kept by absolute position until the response is made.

The engine's client writes, the API reads; both live in the API process. Recomputed positions (preemption) overwrite
themselves, so every position counts once however often it was forwarded.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pilothouse.core.messages import Reading
from pilothouse.core.plans import Plan
from pilothouse.core.sites import Float32

Made = TypeVar("Made")

_MOST_WAITING = 32
"""Positions that wait to be taken in: their rows keep those of other sequences in memory."""


class ScoreTable:
    """Rows of readouts by absolute position; grows at both ends, so reading and adding cost the same at any length."""

    def __init__(self, width: int) -> None:
        self._first = 0
        self._rows = np.empty((0, width), dtype=np.float32)

    def put(self, start: int, rows: Float32) -> None:
        """Set the rows [n, width] of positions [start, start + n)."""
        if not len(self._rows):
            self._first = start
        if start < self._first:
            self._rows = np.concatenate([self._unknown(self._first - start), self._rows])
            self._first = start
        stop = start + len(rows) - self._first
        if stop > len(self._rows):
            self._rows = np.concatenate([self._rows, self._unknown(max(len(self._rows), stop - len(self._rows), 32))])
        self._rows[start - self._first : stop] = rows

    def get(self, start: int, stop: int) -> Float32:
        """A copy of the rows of positions [start, stop); NaN where none was set."""
        if self._first <= start <= stop <= self._first + len(self._rows):
            return self._rows[start - self._first : stop - self._first].copy()
        out = self._unknown(max(stop - start, 0))
        low, high = max(start, self._first), min(stop, self._first + len(self._rows))
        if low < high:
            out[low - start : high - start] = self._rows[low - self._first : high - self._first]
        return out

    def _unknown(self, n: int) -> Float32:
        return np.full((n, self._rows.shape[1]), np.nan, dtype=np.float32)


class Runs:
    """A set of positions, kept as stretches [first, stop). Adding behind the last stretch, as decoding does, makes it
    longer, so a sequence needs about as many stretches as it was preempted times."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []

    def add(self, start: int, stop: int) -> None:
        """Take in the positions [start, stop)."""
        if stop <= start:
            return
        first, last = self._runs[-1] if self._runs else (start, start)
        if first <= start <= last:
            self._runs[-1:] = [(first, max(last, stop))]
        else:
            self._runs.append((start, stop))

    def count(self, start: int, stop: int) -> int:
        """How many distinct positions of [start, stop) there are."""
        return _count(self._runs, start, stop)

    def count_absent(self, wanted: "Runs", start: int, stop: int) -> int:
        """How many distinct positions of [start, stop) are in `wanted` and not here."""
        return _count(self._runs + wanted._runs, start, stop) - self.count(start, stop)

    def copy(self) -> "Runs":
        """The same positions, to be added to."""
        found = Runs()
        found._runs = list(self._runs)
        return found

    @property
    def first(self) -> int | None:
        """The smallest position; None when there is none."""
        return min((start for start, _ in self._runs), default=None)


def _count(runs: list[tuple[int, int]], start: int, stop: int) -> int:
    total, reached = 0, start
    for first, last in sorted(runs):
        lo, hi = max(first, reached), min(last, stop)
        if lo < hi:
            total += hi - lo
            reached = hi
    return total


class Wave:
    """The readouts of one step of decoding [sequences, readouts], of sequences whose readouts mean the same.

    What is to be made of each row is made of all at once, by whoever asks first: between two steps what the processor's
    cache held is gone, and a call of NumPy takes several times as long as what it computes.
    """

    def __init__(self, rows: Float32) -> None:
        self._rows = rows
        self._made: list[Any] = []

    def row(self, number: int) -> Float32:
        """The readouts [1, readouts] of one sequence."""
        return self._rows[number : number + 1]

    def made(self, make: Callable[[Float32], Made]) -> Made:
        """`make` of all rows, called once; it means the same whoever asks."""
        if not self._made:
            self._made.append(make(self._rows))
        found: Made = self._made[0]
        return found


class Latest(NamedTuple):
    """The position that was read last, by itself, and where its readouts are."""

    position: int
    wave: Wave
    row: int


@dataclass
class ChoiceTrack:
    """One generated sequence: its tokens, what was forwarded, and its readouts [position, readout].

    cached: how far the prefix cache reached. reader: stands for what is made of readouts, which is the same for all
    sequences with the same one; latest: what was read last, if that was one position.
    """

    n_prompt: int
    n_readouts: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    edited_reported: int = 0
    cached: int = 0
    reader: object | None = None
    latest: Latest | None = None
    _forwarded: Runs = field(default_factory=Runs, init=False)
    _scored: Runs = field(default_factory=Runs, init=False)
    _scores: ScoreTable = field(init=False)
    _waiting: list[tuple[int, Float32 | None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._scores = ScoreTable(self.n_readouts)

    def add(self, reading: Reading) -> None:
        """Take in one reading; later readings of a position replace earlier ones."""
        self._settle()
        self.cached = max(self.cached, reading.cached)
        self.latest = None
        for start, count, edited in reading.runs:
            self.edited_reported += edited
            self._forwarded.add(start, start + count)
        if reading.scores:
            table = np.frombuffer(reading.scores, dtype="<f4").reshape(-1, self.n_readouts)
            row = 0
            for start, count in reading.score_runs:
                rows = table[row : row + count]
                self._scores.put(start, rows)
                self._scored.add(start, start + len(rows))
                row += count

    def add_position(self, position: int, edited: int, place: tuple[Wave, int] | None) -> None:
        """Take in a position that was forwarded; edited: 1 where it was; place: the wave that its readouts are part of,
        and the number of their row there; None where it was not read."""
        self.latest, row = None, None
        if place is not None:
            wave, number = place
            self.latest, row = Latest(position, wave, number), wave.row(number)
        self.edited_reported += edited
        # Nearly every step of decoding adds one, and hardly any asks: what the rows are part of is all that grows.
        self._waiting.append((position, row))
        if len(self._waiting) == _MOST_WAITING:
            self._settle()

    def _settle(self) -> None:
        """Take in the positions that wait, those that follow one another at once."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        alike = itertools.groupby(enumerate(waiting), lambda item: (item[1][0] - item[0], item[1][1] is None))
        for _, group in alike:
            entries = [entry for _, entry in group]
            start = entries[0][0]
            self._forwarded.add(start, start + len(entries))
            if rows := [row for _, row in entries if row is not None]:
                self._scores.put(start, np.concatenate(rows))
                self._scored.add(start, start + len(rows))

    @property
    def forwarded(self) -> Runs:
        """Positions that went through the model."""
        self._settle()
        return self._forwarded

    @property
    def scored(self) -> Runs:
        """Positions whose readouts arrived, whatever they were. They need not have been forwarded: scores of positions
        that came from the prefix cache may be delivered too."""
        self._settle()
        return self._scored

    def scores(self, start: int, stop: int) -> Float32:
        """Raw readouts [stop - start, readouts] at positions [start, stop); NaN where none was taken."""
        self._settle()
        return self._scores.get(start, stop)

    def count_forwarded(self, start: int, stop: int) -> int:
        """How many distinct positions of [start, stop) went through the model."""
        return self.forwarded.count(start, stop)

    @property
    def first_forwarded(self) -> int:
        """Positions before this one came from the prefix cache; all of the prompt when nothing was forwarded."""
        first = self.forwarded.first
        return self.n_prompt if first is None else first

    @property
    def complete(self) -> bool:
        """Whether the sequence ended as sequences should: neither given up nor broken."""
        return self.finish_reason not in (None, "abort", "error")


def waves(table: Float32, choices: Sequence[ChoiceTrack | None]) -> list[tuple[Wave, int]]:
    """For each row of `table` [choices, readouts] the wave that it is part of, and its number there; None stands for a
    sequence that nobody waits for any more."""
    members: dict[object, list[int]] = defaultdict(list)
    for k, choice in enumerate(choices):
        members[None if choice is None else choice.reader].append(k)
    if len(members) == 1:
        wave = Wave(table)
        return [(wave, k) for k in range(len(table))]
    found: dict[int, tuple[Wave, int]] = {}
    for rows in members.values():
        wave = Wave(table[rows])
        found |= {k: (wave, number) for number, k in enumerate(rows)}
    return [found[k] for k in range(len(table))]


@dataclass
class PromptTrack:
    """One prompt of a request under its plan, and the sequences generated from it."""

    plan: Plan
    prompt_token_ids: list[int]
    spans: list[tuple[int, int]]
    choices: list[ChoiceTrack]
