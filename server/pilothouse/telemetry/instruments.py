"""The metrics of families.py as counters, gauges and histograms of prometheus_client, and the exemplars beside them."""

import math
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pilothouse.telemetry.exemplars import Exemplars, Seen
from pilothouse.telemetry.families import FAMILIES
from pilothouse.telemetry.names import ADHOC
from pilothouse.telemetry.registry_info import COLLECTED
from pilothouse.telemetry.scores import Bounds, ScoreHistogram

SCORES = ("pilothouse_probe_score", "pilothouse_probe_prompt_end")

STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Upper bounds of strengths, in lengths of the stream."""

_QUEUED = "pilothouse_records_queued"


@dataclass(frozen=True)
class Cause:
    """The request behind a count: labels of its exemplar, none when it has none, and when it was."""

    labels: dict[str, str] = field(default_factory=dict)
    time: float = 0.0


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
        self.counters[name].labels(*labels).inc(by)
        if cause is not None and cause.labels:
            named = dict(zip(FAMILIES[name].labels, labels, strict=True))
            self.exemplars.keep(name, named, Seen(cause.labels, by, cause.time))

    def score(self, name: str, *labels: str, value: float, cause: Cause) -> None:
        """Count a score in one of the two histograms of scores, with its exemplar."""
        bound = self._scores[name].labels(*labels).place(value)
        if cause.labels:
            named = dict(zip(FAMILIES[name].labels, labels, strict=True))
            self.exemplars.keep(f"{name}_bucket", {**named, "le": bound}, Seen(cause.labels, value, cause.time))

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
