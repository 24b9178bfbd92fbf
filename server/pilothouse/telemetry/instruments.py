"""The metrics of families.py as counters, gauges and histograms of prometheus_client, and the exemplars beside them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pilothouse.telemetry.exemplars import Exemplars, Key, Seen, key_of
from pilothouse.telemetry.families import FAMILIES
from pilothouse.telemetry.names import ADHOC
from pilothouse.telemetry.registry_info import COLLECTED
from pilothouse.telemetry.scores import Bounds, ScoreHistogram, written

SCORES = ("pilothouse_probe_score", "pilothouse_probe_prompt_end")

STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Upper bounds of strengths, in lengths of the stream."""

_QUEUED = "pilothouse_records_queued"


@dataclass(frozen=True)
class Cause:
    """The request behind a count: labels of its exemplar, none when it has none, and when it was."""

    labels: dict[str, str] = field(default_factory=dict)
    time: float = 0.0


class _Counted(NamedTuple):
    """How to add to one series of a counter, and which sample it is."""

    add: Callable[[float], None]
    key: Key


class _Scored(NamedTuple):
    """One series of a histogram of scores, its labels, and which samples its buckets are, by their bounds."""

    series: ScoreHistogram
    labels: dict[str, str]
    keys: dict[float, Key]


class Instruments:
    """Counts by a metric's name and its label values in order. Threads may share it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.exemplars = Exemplars()
        self._bounds = Bounds()
        # A feature that is watched for one request only flags whatever is active at all.
        self._bounds.add(ADHOC, 0.0)
        self.counters: dict[str, Counter] = {}
        self.gauges: dict[str, Gauge] = {}
        self._scores: dict[str, ScoreHistogram] = {}
        # To ask prometheus_client for a series takes longer than to count in it, and no series is ever taken back.
        self._counted: dict[tuple[str, ...], _Counted] = {}
        self._scored: dict[tuple[str, ...], _Scored] = {}
        for family in FAMILIES.values():
            what = (family.name, family.help, family.labels)
            if family.kind == "counter":
                self.counters[family.name] = Counter(*what, registry=registry)
            elif family.name in SCORES:
                self._scores[family.name] = ScoreHistogram(*what, bounds=self._bounds, registry=registry)
            elif family.kind == "histogram":
                self._strength = Histogram(*what, buckets=STRENGTHS, registry=registry)
            elif family.name not in COLLECTED:
                # Queues add up over processes; of what labels say, the last who was told knows most.
                mode = "livesum" if family.name == _QUEUED else "mostrecent"
                self.gauges[family.name] = Gauge(*what, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]

    def count(self, name: str, *labels: str, by: float = 1.0, cause: Cause | None = None) -> None:
        """Add to a counter. cause: becomes its exemplar."""
        counted = self._counted.get((name, *labels)) or self._count_in(name, labels)
        counted.add(by)
        if cause is not None and cause.labels:
            self.exemplars.keep(counted.key, Seen(cause.labels, by, cause.time))

    def score(self, name: str, *labels: str, value: float, cause: Cause) -> None:
        """Count a score in one of the two histograms of scores, with its exemplar."""
        scored = self._scored.get((name, *labels)) or self._score_in(name, labels)
        bound = scored.series.place(value)
        if cause.labels:
            if (key := scored.keys.get(bound)) is None:
                key = scored.keys[bound] = key_of(f"{name}_bucket", {**scored.labels, "le": written(bound)})
            self.exemplars.keep(key, Seen(cause.labels, value, cause.time))

    def strength(self, *labels: str, value: float) -> None:
        """Count how far a vector pushed, in lengths of the stream."""
        self._strength.labels(*labels).observe(value)

    def gauge(self, name: str, *labels: str, value: float | None) -> None:
        """Set a gauge; None takes it back. Files cannot forget a gauge, so it is kept as one that is not a number."""
        self.gauges[name].labels(*labels).set(math.nan if value is None else value)

    def bound(self, thresholds: dict[str, float]) -> None:
        """From now on the scores of each of these probes are counted with a bucket that ends at its threshold."""
        for probe, threshold in thresholds.items():
            self._bounds.add(probe, threshold)
        for histogram in self._scores.values():
            histogram.widen()

    def _count_in(self, name: str, labels: tuple[str, ...]) -> _Counted:
        key = key_of(name, dict(zip(FAMILIES[name].labels, labels, strict=True)))
        # What the series adds itself, but for its questions whether it has labels and is asked to fall.
        counted = self._counted[name, *labels] = _Counted(self.counters[name].labels(*labels)._value.inc, key)
        return counted

    def _score_in(self, name: str, labels: tuple[str, ...]) -> _Scored:
        named = dict(zip(FAMILIES[name].labels, labels, strict=True))
        scored = self._scored[name, *labels] = _Scored(self._scores[name].labels(*labels), named, {})
        return scored
