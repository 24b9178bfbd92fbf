"""What is registered, as metrics: read from this process alone, since all API servers of a server register alike."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pilothouse.telemetry.drift import Drift, RecentScores
from pilothouse.telemetry.families import FAMILIES

_REGISTERED = ("pilothouse_probe_info", "pilothouse_probe_threshold", "pilothouse_vector_info")
_DRIFT = ("pilothouse_probe_drift_psi", "pilothouse_probe_drift_scores")
COLLECTED = frozenset({*_REGISTERED, *_DRIFT})
"""Gauges that are made anew at each scrape."""


@dataclass(frozen=True)
class ProbeInfo:
    """What is shown of a probe. layers: numbers joined by commas; calibration: its kind, or `none`;
    reference_histogram: as the card has it, `{"edges", "counts"}` of calibrated scores of choices, if it does."""

    name: str
    version: str
    layers: str
    aggregate: str
    calibration: str
    alarm: str
    threshold: float
    reference_histogram: Any = None


@dataclass(frozen=True)
class VectorInfo:
    """What is shown of a vector; as `ProbeInfo`."""

    name: str
    version: str
    layers: str


class RegistryCollector(Collector):
    """Shows what it was last told is registered."""

    def __init__(self) -> None:
        self._shown: tuple[str, tuple[ProbeInfo, ...], tuple[VectorInfo, ...]] = ("", (), ())

    def show(self, model_name: str, probes: Iterable[ProbeInfo], vectors: Iterable[VectorInfo]) -> None:
        """This and nothing else is registered."""
        self._shown = (model_name, tuple(probes), tuple(vectors))

    def describe(self) -> Iterable[Metric]:
        """The names alone."""
        return [gauge(name) for name in _REGISTERED]

    def collect(self) -> Iterator[Metric]:
        """One sample of each gauge for each probe or vector."""
        model, probes, vectors = self._shown
        info, threshold, vector_info = map(gauge, _REGISTERED)
        for probe in probes:
            labels = (probe.version, probe.layers, probe.aggregate, probe.calibration, probe.alarm)
            info.add_metric((model, probe.name, *labels), 1.0)
            threshold.add_metric((model, probe.name), probe.threshold)
        for vector in vectors:
            vector_info.add_metric((model, vector.name, vector.version, vector.layers), 1.0)
        yield from (info, threshold, vector_info)


class DriftCollector(Collector):
    """Shows drift. others: recent scores of further processes, asked for at each scrape."""

    def __init__(self, drift: Drift, others: Callable[[], Iterable[RecentScores]]) -> None:
        self._drift = drift
        self._others = others

    def describe(self) -> Iterable[Metric]:
        """The names alone."""
        return [gauge(name) for name in _DRIFT]

    def collect(self) -> Iterator[Metric]:
        """Both gauges for each probe that has a reference."""
        index, scores = map(gauge, _DRIFT)
        for labels, (value, total) in sorted(self._drift.found(self._others()).items()):
            index.add_metric(labels, value)
            scores.add_metric(labels, total)
        yield from (index, scores)


def gauge(name: str) -> GaugeMetricFamily:
    """A gauge of the table without samples."""
    family = FAMILIES[name]
    return GaugeMetricFamily(family.name, family.help, labels=family.labels)
