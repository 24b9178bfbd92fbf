"""How far recent scores have moved from those that a probe was measured on: the population stability index (PSI).

PSI = sum over bins of (r - q) ln(r / q), with r the recent shares and q those of the reference: N. Siddiqi, Credit Risk
Scorecards (2006), where below 0.1 is no change and above 0.25 a large one. With N recent scores and M reference ones of
the same kind its mean is about (bins - 1) (1/N + 1/M): B. Yurdakul and J. Naranjo, Statistical properties of the
population stability index, Journal of Risk Model Validation 14 (2020). So bins are few and not empty: see `groups`.
"""

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

HALF_LIFE = 3600.0
"""Seconds after which a score counts for half."""

_SHARE = 0.1
"""Of the reference, that a group of bins should have: tenths, as is the custom."""

_PRIOR = 0.5
"""Jeffreys' prior for shares: half a count for each group, so that no logarithm is of zero."""


@dataclass(frozen=True)
class Reference:
    """The scores a probe was measured on. edges [n + 1]: ascending; counts [n]; version: the probe's."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    version: str = ""

    @classmethod
    def from_card(cls, histogram: Any, version: str) -> Self | None:
        """The card's `reference_histogram`; None where there is none, or none that can be used."""
        if not isinstance(histogram, Mapping):
            return None
        edges, counts = _numbers(histogram.get("edges")), _numbers(histogram.get("counts"))
        if len(edges) != len(counts) + 1 or not counts or min(counts) < 0 or sum(counts) <= 0:
            return None
        if any(low >= high for low, high in pairwise(edges)):
            return None
        return cls(edges, counts, version)

    def bin(self, score: float) -> int:
        """As NumPy's histogram counts, but what lies outside is in the outermost bins."""
        return min(max(bisect_right(self.edges, score) - 1, 0), len(self.counts) - 1)


@dataclass(frozen=True)
class Recent:
    """Scores of a probe by bin, each for less the older it is. at: the time for which that holds; a score that came
    later counts for more than one."""

    version: str
    counts: list[float]
    at: float

    def faded(self, now: float) -> list[float]:
        """The counts as they are at `now`."""
        left = 0.5 ** (max(now - self.at, 0.0) / HALF_LIFE)
        return [count * left for count in self.counts]

    def add(self, number: int, now: float) -> None:
        """One more score, in bin `number`."""
        self.counts[number] += 2.0 ** (max(now - self.at, 0.0) / HALF_LIFE)


def groups(counts: Sequence[float]) -> list[range]:
    """Neighbouring bins taken together until they hold a tenth of all counts; a bin that holds one itself stays alone,
    so that however narrow the reference is, there is something beside it to move to."""
    enough = _SHARE * sum(counts)
    found: list[range] = []
    start, held = 0, 0.0
    for number, count in enumerate(counts):
        if count >= enough and number > start:
            found.append(range(start, number))
            start, held = number, 0.0
        held += count
        if held >= enough:
            found.append(range(start, number + 1))
            start, held = number + 1, 0.0
    if start < len(counts):
        found.append(range(start, len(counts)))
    return found


def psi(reference: Sequence[float], recent: Sequence[float]) -> float:
    """The index of `recent` counts [n] against `reference` counts [n].

    Recent shares lean on the reference's by half a count a group, so that few scores say little: none at all give 0.
    """
    together = groups(reference)
    prior = _PRIOR * len(together)
    n_reference, n_recent = sum(reference) + prior, sum(recent) + prior
    index = 0.0
    for group in together:
        q = (sum(reference[i] for i in group) + _PRIOR) / n_reference
        r = (sum(recent[i] for i in group) + prior * q) / n_recent
        index += (r - q) * math.log(r / q)
    return index


RecentScores = Mapping[tuple[str, str], Recent]
"""By model and probe."""


class Drift:
    """Recent scores of this process by model and probe, of probes that have a reference. Threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._references: dict[tuple[str, str], Reference] = {}
        self._recent: dict[tuple[str, str], Recent] = {}

    def show(self, model_name: str, references: Mapping[str, Reference]) -> None:
        """All references there are, by probe. Scores of another version of a probe, or of one that is gone, go."""
        with self._lock:
            self._references = {(model_name, probe): reference for probe, reference in references.items()}
            self._recent = {
                key: recent
                for key, recent in self._recent.items()
                if key in self._references and self._references[key].version == recent.version
            }

    def observe(self, model_name: str, probe: str, version: str, score: float) -> None:
        """Take in one score of `version` of a probe."""
        key = (model_name, probe)
        with self._lock:
            reference = self._references.get(key)
            if reference is None or reference.version != version:
                return
            now = self._clock()
            recent = self._recent.get(key)
            if recent is None:
                recent = self._recent[key] = Recent(version, [0.0] * len(reference.counts), now)
            elif now > recent.at + HALF_LIFE:
                recent = self._recent[key] = Recent(version, recent.faded(now), now)
            recent.add(reference.bin(score), now)

    def dump(self) -> list[Any]:
        """For `load`, in JSON."""
        with self._lock:
            return [[*key, recent.version, list(recent.counts), recent.at] for key, recent in self._recent.items()]

    def found(self, others: Iterable[RecentScores] = ()) -> dict[tuple[str, str], tuple[float, float]]:
        """Of every probe with a reference, by model and probe, the index and how many scores are behind it, those that
        other processes have taken in included."""
        now = self._clock()
        with self._lock:
            references, several = dict(self._references), [dict(self._recent), *others]
        found = {}
        for key, reference in references.items():
            total = [0.0] * len(reference.counts)
            for recent in (kept[key] for kept in several if key in kept):
                if recent.version == reference.version and len(recent.counts) == len(total):
                    total = [a + b for a, b in zip(total, recent.faded(now), strict=True)]
            found[key] = (psi(reference.counts, total), sum(total))
        return found


def load(dumped: Iterable[Any]) -> RecentScores:
    """What `Drift.dump` wrote; ValueError or TypeError for anything else."""
    return {
        (model, probe): Recent(version, list(map(float, counts)), float(at))
        for model, probe, version, counts, at in dumped
    }


def _numbers(value: Any) -> tuple[float, ...]:
    """A list of finite numbers; empty for anything else."""
    if not isinstance(value, list) or not all(isinstance(x, int | float) and math.isfinite(x) for x in value):
        return ()
    return tuple(map(float, value))
