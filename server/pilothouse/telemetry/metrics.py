"""Prometheus metrics of scored and steered requests: what takes them in, and what is scraped.

Labels hold configured names and fixed words only (names.py); never anything a client wrote.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from pilothouse.core.records import RequestOutcome
from pilothouse.probing.quality import Quality
from pilothouse.telemetry import drift, exemplars
from pilothouse.telemetry.counting import Counting
from pilothouse.telemetry.drift import Drift, RecentScores, Reference
from pilothouse.telemetry.exemplars import exemplar_labels
from pilothouse.telemetry.followed import LINE_OUTCOMES, SPAN_OUTCOMES, Followed, Read, RecordCounts
from pilothouse.telemetry.instruments import Cause, Instruments
from pilothouse.telemetry.names import Names
from pilothouse.telemetry.registry_info import DriftCollector, ProbeInfo, RegistryCollector, VectorInfo
from pilothouse.telemetry.sharing import FOLDER_ENV, Sharing

logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")

FEATURE = "rectified"
"""The kind of calibration that only watched SAE features have."""
_WORDS = {False: "false", True: "true"}


class Metrics:
    """The metrics of one process. An `OutcomeSink`.

    registry: where they are registered, by default the one that holds vLLM's. Where several processes count together
    (`PROMETHEUS_MULTIPROC_DIR`), `collect` shows what all of them have counted.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock
        self._names = Names()
        self._instruments = Instruments(registry)
        self._drift = Drift(clock)
        self._followed = Followed()
        self._info = RegistryCollector()
        self._drifts = DriftCollector(self._drift, self._others_scores)
        registry.register(self._info)
        registry.register(self._drifts)
        folder = os.environ.get(FOLDER_ENV)
        self._sharing = None if folder is None else Sharing(Path(folder), self._shared)
        if self._sharing is not None:
            self._sharing.start()

    def close(self) -> None:
        """Let the other processes know the last of it."""
        if self._sharing is not None:
            self._sharing.stop()

    def observe(self, outcome: RequestOutcome) -> None:
        """Count one finished request."""
        model, steering = self._names.model(outcome.model_name), self._names.steering(outcome)
        cause = Cause(exemplar_labels(outcome), self._clock())
        Counting(outcome, model, steering, cause, self._names, self._instruments, self._drift).count()

    def show_registry(
        self, model_name: str, probes: Iterable[ProbeInfo], vectors: Iterable[VectorInfo], saes: Iterable[str] = ()
    ) -> None:
        """What is registered now; what was and is no longer is shown no more. The names may be label values from now
        on, thresholds are bounds of buckets, and recent scores are held against the reference histograms.

        saes: names of SAEs, whose features steer as vectors do.
        """
        probes, vectors = tuple(probes), tuple(vectors)
        self._names.add([model_name], [p.name for p in probes], [*(v.name for v in vectors), *saes])
        self._instruments.bound({probe.name: probe.threshold for probe in probes})
        self._info.show(model_name, probes, vectors)
        found = {p.name: Reference.from_card(p.reference_histogram, p.version) for p in probes}
        self._drift.show(model_name, {name: reference for name, reference in found.items() if reference is not None})
        for probe in probes:
            # So that the first flag of all is an increase, as a rate sees it.
            for flagged in _WORDS.values():
                labels = (model_name, self._names.probe(probe.name), flagged)
                self._instruments.count("pilothouse_probe_requests_total", *labels, by=0)
            if probe.calibration == FEATURE:
                # Rules tell features from probes by this series, so it must be there from the start.
                self._instruments.count("pilothouse_feature_tokens_total", *labels[:2], by=0)

    def add_step_times(self, model_name: str, seconds: Mapping[str, float], steps: int) -> None:
        """Add the engine worker's own time in `steps` steps. seconds: by phase, `prepare` (row maps, before a step)
        and `read` (scores, after it)."""
        model = self._names.model(model_name)
        for phase in ("prepare", "read"):
            self._instruments.count("pilothouse_step_seconds_total", model, phase, by=seconds.get(phase, 0.0))
        self._instruments.count("pilothouse_steps_total", model, by=steps)

    def count_label(self, model_name: str, probe: str, flagged: bool, value: bool) -> None:
        """Count a label that a record was given. flagged: what the probe had said; value: what was found."""
        labels = (self._names.model(model_name), self._names.probe(probe))
        self._instruments.count("pilothouse_probe_labels_total", *labels, _WORDS[flagged], _WORDS[value])

    def show_quality(self, model_name: str, assessed: Mapping[str, Quality]) -> None:
        """What labelled records say of the present versions of probes, by name; of probes that are not here nothing is
        shown any more. Of several API servers the one that was told last is shown."""
        model = self._names.model(model_name)
        found = {(model, self._names.probe(probe)): quality for probe, quality in assessed.items()}
        # Of every probe, since another API server may have shown what is to be taken back.
        for key in found.keys() | {(model, probe) for probe in self._names.probes}:
            quality = found.get(key)
            values = {} if quality is None else {**asdict(quality), "labelled": quality.n}
            for what in ("labelled", "precision", "recall", "calibration_error"):
                self._instruments.gauge(f"pilothouse_probe_{what}", *key, value=values.get(what))

    def follow_records(self, read: Callable[[], RecordCounts]) -> None:
        """Show what the record store counts."""
        written, dropped = (
            self._instruments.counters[f"pilothouse_records_{what}_total"] for what in ("written", "dropped")
        )
        self._followed.follow_records(written, dropped, self._instruments.gauges["pilothouse_records_queued"], read)

    def follow_spans(self, read: Read) -> None:
        """Show what the exporter of spans counts, by outcome: `exported`, `dropped`."""
        self._followed.follow(self._instruments.counters["pilothouse_spans_total"], read, SPAN_OUTCOMES)

    def follow_log_lines(self, read: Read) -> None:
        """Show what the request log counts, by outcome: `written`, `dropped`."""
        self._followed.follow(self._instruments.counters["pilothouse_log_lines_total"], read, LINE_OUTCOMES)

    def follow_sink_errors(self, read: Read) -> None:
        """Show what `Sinks.errors` counts, by sink."""
        self._followed.follow(self._instruments.counters["pilothouse_sink_errors_total"], read)

    def collect(self) -> Iterator[Metric]:
        """All metrics of the server, vLLM's included, with exemplars at ours."""
        self._followed.refresh()
        others = self._others("exemplars", exemplars.load)
        kept = exemplars.newest([self._instruments.exemplars.all(), *others])
        for family in self._collect():
            if family.name.startswith("pilothouse_"):
                # A gauge that was taken back: see `Instruments.gauge`.
                family.samples = [sample for sample in family.samples if not math.isnan(sample.value)]
                exemplars.attach(family, kept)
            yield family

    def _collect(self) -> Iterator[Metric]:
        if self._sharing is None:
            yield from self._registry.collect()
            return
        yield from MultiProcessCollector(None, str(self._sharing.folder)).collect()  # type: ignore[no-untyped-call]
        yield from self._info.collect()
        yield from self._drifts.collect()

    def _shared(self) -> dict[str, Any]:
        """What the other processes are to know. Called every second, so that they see what is followed, too."""
        shared = {"exemplars": self._instruments.exemplars.dump(), "scores": self._drift.dump()}
        self._followed.refresh()
        return shared

    def _others_scores(self) -> list[RecentScores]:
        return self._others("scores", drift.load)

    def _others(self, what: str, load: Callable[[Any], _Loaded]) -> list[_Loaded]:
        """What other processes have shared; files that are not as ours are passed over."""
        found = []
        for shared in [] if self._sharing is None else self._sharing.others():
            try:
                found.append(load(shared[what]))
            except (LookupError, TypeError, ValueError, AttributeError):
                logger.debug("another process shares what cannot be read", exc_info=True)
        return found
