"""An API server as metrics see it: does what it is told on its standard input, one JSON list a line, and answers each
with a line."""

import json
import sys
from collections.abc import Callable
from typing import Any

from prometheus_client import REGISTRY

from pilothouse.core.records import ProbeOutcome
from pilothouse.core.trace import TraceContext
from pilothouse.probing.quality import Quality
from pilothouse.telemetry import sharing
from pilothouse.telemetry.exposition import render
from pilothouse.telemetry.followed import RecordCounts
from pilothouse.telemetry.metrics import Metrics
from telemetry_support.outcomes import MODEL, REFERENCE, VECTORS, make_metrics, outcome, probe_info


class Process:
    """The commands."""

    def __init__(self, metrics: Metrics, set_time: Callable[[float], None]) -> None:
        self._metrics = metrics
        self._set_time = set_time
        self._records = RecordCounts()
        metrics.follow_records(lambda: self._records)

    def observe(self, response_id: str, score: float, at: float) -> None:
        self._set_time(at)
        probe = ProbeOutcome("p", score, score / 2, score > 0.873, 3, n_expected=4, version="sha256:1")
        trace = TraceContext("ab" * 16, "cd" * 8)
        self._metrics.observe(outcome(probe, response_id=response_id, trace=trace))

    def register(self, threshold: float, version: str) -> None:
        info = probe_info("p", threshold, version, reference_histogram=REFERENCE)
        self._metrics.show_registry(MODEL, [info], VECTORS[:1])

    def records(self, written: int, queued: int) -> None:
        self._records = RecordCounts(written, queued)

    def quality(self, *assessed: list[Any]) -> None:
        self._metrics.show_quality(MODEL, {name: Quality(*said) for name, *said in assessed})

    def scrape(self, accept: str) -> str:
        return render(self._metrics, accept).body.decode()


def main() -> None:
    """Until the input ends."""
    sharing.INTERVAL = 0.02
    now = [1000.0]
    metrics = make_metrics(REGISTRY, probe_info(reference_histogram=REFERENCE), clock=lambda: now[0])
    process = Process(metrics, lambda time: now.__setitem__(0, time))
    for line in sys.stdin:
        name, *values = json.loads(line)
        print(json.dumps(getattr(process, name)(*values)), flush=True)


if __name__ == "__main__":
    main()
