"""Something that says every metric, well or ill, for Prometheus to scrape: the dashboards' queries need no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from deploy_support.catalogue import VLLM, Family, own
from pilothouse.telemetry.exposition import render

LABELS = {
    "model_name": ("m",),
    "probe": ("made-up", "true", "feature"),
    "steering": ("none", "kind"),
    "vector": ("kind", "honest"),
    "flagged": ("true", "false"),
    "value": ("true", "false"),
    "reason": ("aborted",),
    "route": ("/v1/chat/completions", "/v1/completions"),
    "action": ("steer", "stop"),
    "phase": ("prepare", "read"),
    "version": ("sha256:0",),
    "layers": ("2",),
    "aggregate": ("mean",),
    "calibration": ("platt",),
    "outcome": ("exported", "written"),
    "engine": ("0",),
    "finished_reason": ("stop", "length"),
}
"""The values of each label while all is well; `alarm` goes with the probe."""

FAULTS = {
    "pilothouse_engine_gaps_total": ("m", "scored"),
    "pilothouse_probe_unscored_total": ("m", "true", "not_finite"),
    "pilothouse_records_dropped_total": ("database",),
    "pilothouse_sink_errors_total": ("RecordStore",),
    "pilothouse_spans_total": ("dropped",),
    "pilothouse_log_lines_total": ("dropped",),
}
"""Series that begin with the first fault."""

FEATURE = "feature"
"""The probe that is a watched feature."""
THRESHOLDS = {"made-up": 0.73, "true": 0.73, FEATURE: 0.0}
FLAGGED_WELL, FLAGGED_ILL = 1, 19
"""Flagged choices of twenty."""
BUCKETS = (0.0, 0.25, 0.5, 0.73, 0.9, 1.0)
SCORES = {"none": (0.2, 0.95), "kind": (0.1, 0.3)}
"""Scores by steering: half of the unsteered ones are past the threshold, none of the steered ones."""


class Exporter:
    """Counts a little each time it is told to. ill: whether things go wrong; silent: whether it answers no scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ill = self.silent = False
        self._n = 0
        self._metrics = {family: self._made(family.name, family) for family in own()}
        self._vllm = {family: self._made(f"vllm:{family.name}", family) for family in VLLM}

    def tick(self) -> None:
        """One more of everything."""
        self._n += 1
        for family, metric in (self._metrics | self._vllm).items():
            for labels in _combinations(family):
                child = metric.labels(**labels) if labels else metric
                self._count(family, child, labels)
        if self.ill:
            for family, metric in self._metrics.items():
                if family.name in FAULTS:
                    metric.labels(*FAULTS[family.name]).inc(5)

    def _made(self, name: str, family: Family) -> Any:
        what = (name.removesuffix("_total"), "help", family.labels)
        if family.kind == "histogram":
            return Histogram(*what, buckets=BUCKETS, registry=self.registry)
        return {"counter": Counter, "gauge": Gauge}[family.kind](*what, registry=self.registry)

    def _count(self, family: Family, child: Any, labels: dict[str, str]) -> None:
        exemplar = {"request_id": f"chatcmpl-{self._n}", "trace_id": f"{self._n:032x}"}
        if family.kind == "histogram":
            for score in SCORES[labels.get("steering", "none")]:
                child.observe(score, exemplar if "steering" in labels else None)
        elif family.kind == "gauge":
            child.set(self._gauge(family.name, labels))
        elif family.name == "pilothouse_probe_requests_total":
            flagged = FLAGGED_ILL if self.ill else FLAGGED_WELL
            child.inc(flagged if labels["flagged"] == "true" else 20 - flagged, exemplar)
        elif family.name == "pilothouse_probe_tokens_total":
            child.inc(90 if self.ill else 100)
        else:
            child.inc(100)

    def _gauge(self, name: str, labels: dict[str, str]) -> float:
        match name:
            case "pilothouse_probe_threshold":
                return THRESHOLDS[labels["probe"]]
            case "pilothouse_probe_drift_psi":
                return 0.6 if self.ill else 0.02
            case "pilothouse_probe_drift_scores":
                return 5000
        return 1


def _combinations(family: Family) -> Iterator[dict[str, str]]:
    """The labels of its series. Only the watched feature has the metrics of features; only errors have errors'."""
    if family.name in (
        "pilothouse_engine_gaps_total",
        "pilothouse_records_dropped_total",
        "pilothouse_sink_errors_total",
    ):
        return
    free = [label for label in family.labels if label != "alarm"]
    for chosen in product(*(LABELS[label] for label in free)):
        labels = dict(zip(free, chosen, strict=True))
        if "_feature_" in family.name and labels["probe"] != FEATURE:
            continue
        if "alarm" in family.labels:
            labels["alarm"] = "low" if labels["probe"] == "true" else "high"
        yield labels


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def exporting(exporter: Exporter) -> Iterator[dict[str, str]]:
    """Two addresses of the same metrics: one that negotiates OpenMetrics, as a server does, and one with the old text
    alone. The exporter counts ten times a second."""

    def negotiated(environment: Any, start: Any) -> Any:
        if exporter.silent:
            start("503 Service Unavailable", [])
            return []
        page = render(exporter.registry, environment.get("HTTP_ACCEPT", ""))
        start("200 OK", list(page.headers.items()))
        return [page.body]

    def plain(_: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)])
        return [generate_latest(exporter.registry)]

    over = threading.Event()

    def count() -> None:
        while not over.is_set():
            exporter.tick()
            time.sleep(0.1)

    apps = {"openmetrics": negotiated, "plain": plain}
    servers = {name: make_server("127.0.0.1", 0, app, handler_class=Quiet) for name, app in apps.items()}
    threads = [threading.Thread(target=count)]
    threads += [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers.values()]
    for thread in threads:
        thread.start()
    try:
        yield {name: f"127.0.0.1:{server.server_port}" for name, server in servers.items()}
    finally:
        over.set()
        for server in servers.values():
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
