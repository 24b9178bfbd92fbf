"""`pilothouse bench-records` without its servers: ratios, the lock that makes a store slow, what was measured."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

from pilothouse.cli.bench_records import AGAIN, LOCKED_SECONDS, OFF, STORES, locking, summarise

COMMITTED = Path(__file__).parents[2] / "bench" / "records.json"


def test_ratios_are_of_the_same_round() -> None:
    # The machine slows down from round to round; the store costs a tenth in each.
    items = [
        {"round": number, "store": store, "milliseconds": [pace * cost * ms for ms in (1.0, 2.0, 3.0)]}
        for number, pace in enumerate((1.0, 3.0, 10.0))
        for store, cost in (("on", 1.1), (OFF, 1.0))
    ]
    found = {row["store"]: row for row in summarise(items, seed=0)}
    assert found[OFF]["p50"] == {"milliseconds": 6.0, "ratio": 1.0, "low": 1.0, "high": 1.0}
    assert found["on"]["p95"]["ratio"] == pytest.approx(1.1)
    assert found["on"]["p95"]["low"] == pytest.approx(1.1)


def test_the_lock_is_held_most_of_the_time(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    with locking(path):
        refused = 0
        for _ in range(20):
            time.sleep(LOCKED_SECONDS / 10)
            with sqlite3.connect(path, timeout=0, isolation_level=None) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("COMMIT")
                except sqlite3.OperationalError:
                    refused += 1
            connection.close()
        assert refused >= 10
    with sqlite3.connect(path, timeout=0) as connection:
        connection.execute("BEGIN IMMEDIATE")
    connection.close()


def test_the_committed_measurement_has_every_store_and_every_latency() -> None:
    report = json.loads(COMMITTED.read_text(encoding="utf-8"))
    load = report["load"]
    assert {row["store"] for row in report["summary"]} == {*STORES, AGAIN}
    assert {(i["store"], i["round"]) for i in report["items"]} == {
        (store, number) for store in (*STORES, AGAIN) for number in range(load["rounds"])
    }
    assert all(len(item["milliseconds"]) == load["requests"] for item in report["items"])
    assert summarise(report["items"], 0) == report["summary"]
    name = "pilothouse_records_written_total"
    written = {store: counts.get(name, 0.0) for store, counts in report["records"].items()}
    assert written["off"] == written["dead"] == 0.0
    assert written["on"] >= load["requests"] * load["rounds"]
