"""What metrics, records and log lines count of the same requests."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from serve_support.server import Server

Counts = Counter[tuple[str, ...]]


def by_metrics(page: str) -> Counts:
    """Of a page of metrics: requests by route and steering, scored choices by probe and verdict, others by reason."""
    labels = {
        "pilothouse_requests_total": ("route", "steering"),
        "pilothouse_probe_requests_total": ("probe", "flagged"),
        "pilothouse_probe_unscored_total": ("probe", "reason"),
    }
    found: Counts = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in labels and sample.value:
                found[sample.name, *(sample.labels[name] for name in labels[sample.name])] += int(sample.value)
    return found


def by_records(path: Path) -> Counts:
    """The same of a database of records."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    query = (
        "select r.route, r.steering, s.probe, s.score, s.flagged, s.reason, r.id from responses r left join scores s"
    )
    rows = connection.execute(f"{query} on s.record = r.id order by r.id").fetchall()
    connection.close()
    found: Counts = Counter()
    seen = None
    for route, steering, probe, score, flagged, reason, number in rows:
        if number != seen:
            found["pilothouse_requests_total", route, steering] += 1
            seen = number
        if probe is not None:
            _count(found, probe, score, bool(flagged), reason)
    return found


def by_lines(lines: Iterable[str]) -> Counts:
    """The same of a log of requests."""
    found: Counts = Counter()
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        found["pilothouse_requests_total", said["route"], said["steering"]] += 1
        for probe in said["probes"]:
            _count(found, probe["probe"], probe["score"], probe["flagged"], probe["reason"])
    return found


def agreed(server: Server, folder: Path, log: str = "requests.jsonl") -> Counts:
    """What metrics count, once records and log lines, in `folder`, count the same; those of a client that left come
    last."""
    deadline = time.monotonic() + 60
    while True:
        counted = by_metrics(server.get("/metrics").text)
        recorded = by_records(folder / "records.sqlite")
        with (folder / log).open() as lines:
            logged = by_lines(lines)
        if counted == recorded == logged or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert counted == recorded
    assert counted == logged
    return counted


def _count(found: Counts, probe: str, score: float | None, flagged: bool, reason: str | None) -> None:
    if score is None:
        found["pilothouse_probe_unscored_total", probe, str(reason)] += 1
    else:
        found["pilothouse_probe_requests_total", probe, str(flagged).lower()] += 1
