"""Histograms of scores whose buckets end exactly at the thresholds, those of probes that arrive later included."""

import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from prometheus_client import Histogram, values
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

_STEP_COUNT = 20
STEPS = tuple(i / _STEP_COUNT for i in range(1, _STEP_COUNT + 1))
"""Upper bounds that every probe's histogram has."""


class Bounds:
    """The upper bounds of every probe's buckets: `STEPS` and all thresholds that the probe has or has had."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._thresholds: dict[str, set[float]] = {}

    def add(self, probe: str, threshold: float) -> None:
        """One more bound for `probe`; histograms that count already have to be widened."""
        with self.lock:
            self._thresholds.setdefault(probe, set()).add(float(threshold))

    def of(self, probe: str) -> tuple[float, ...]:
        """In ascending order. The lock must be held."""
        return tuple(sorted({*STEPS, *self._thresholds.get(probe, ())}))


class ScoreHistogram(Histogram):
    """A Histogram each of whose children has the bounds of its label `probe`, and gets further ones while it counts.

    What was observed before a bound came stays in the bucket above it: the new bucket starts with the count of the
    one below, so no series ever falls, and what is counted from then on is exact.
    """

    def __init__(self, name: str, documentation: str, labelnames: Iterable[str] = (), *, bounds: Bounds, **more: Any):
        self._of_probes = bounds
        super().__init__(name, documentation, labelnames, buckets=STEPS, **more)
        self._kwargs = {"bounds": bounds}

    def _metric_init(self) -> None:
        with self._of_probes.lock:
            self._prepare_buckets(self._of_probes.of(self._probe()))
        super()._metric_init()

    def _probe(self) -> str:
        return str(self._labelvalues[self._labelnames.index("probe")])

    def place(self, amount: float) -> float:
        """Count `amount`; the upper bound of the bucket it fell into."""
        with self._of_probes.lock:
            # As `observe`, which looks at one bound after another.
            at = bisect_left(self._upper_bounds, amount)
            self._sum.inc(amount)
            self._buckets[at].inc(1)
            bound: float = self._upper_bounds[at]
            return bound

    def widen(self) -> None:
        """Give all children the bounds that their probes have got since they were made."""
        # Never both locks at once here: a child that is made takes them one inside the other.
        with self._lock:
            children: list[Any] = list(self._metrics.values())
        for child in children:
            with self._of_probes.lock:
                child._add_missing()

    def _add_missing(self) -> None:
        for bound in self._of_probes.of(self._probe()):
            if bound in self._upper_bounds:
                continue
            at = bisect_left(self._upper_bounds, bound)
            labels = (*self._labelnames, "le")
            label_values = (*self._labelvalues, written(bound))
            bucket = values.ValueClass(
                self._type, self._name, self._name + "_bucket", labels, label_values, self._documentation
            )
            self._upper_bounds.insert(at, bound)
            self._buckets.insert(at, bucket)

    def _child_samples(self) -> Iterable[Sample]:
        with self._of_probes.lock:
            return super()._child_samples()


def written(bound: float) -> str:
    """A bound as prometheus_client writes it: the value of the label `le`."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]
