"""Servers of several processes count as one: metrics, exemplars, records and log lines; and what a kill may cost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from serve_support.agreement import agreed
from serve_support.mixed import KINDS, send
from serve_support.server import ADMIN_KEY, Server, serving

from pilothouse.records.queue import WriterLimits

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

N_REQUESTS = 400
N_BEFORE_THE_KILL = 300
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""Each engine has a core of its own: vLLM binds them by itself only where there are several memory nodes."""


def exemplars_of(server: Server) -> dict[str, set[str]]:
    """The ids of the requests that exemplars name, by the name of the sample that has them."""
    page = server.get("/metrics", headers=OPENMETRICS)
    assert page.headers["content-type"].startswith("application/openmetrics-text")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page.text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar:
                found.setdefault(sample.name, set()).add(sample.exemplar.labels["request_id"])
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_processes_count_as_one(ranks: int, tmp_path: Path) -> None:
    flags = ["--enforce-eager", "--api-server-count", "2", "--data-parallel-size", str(ranks)]
    log = tmp_path / "requests.jsonl"
    with serving(tmp_path, *flags, "--request-log", str(log), **(CORES if ranks > 1 else {})) as server:
        done = asyncio.run(send(server, N_REQUESTS, random.Random(ranks)))
        counted = agreed(server, tmp_path)
        assert set(done) == {kind.__name__ for kind in KINDS}
        made = sum(n for (name, *_), n in counted.items() if name == "pilothouse_requests_total")
        assert made == N_REQUESTS - done["plain"] - done["refused"]
        time.sleep(1.5)  # what one process knows of its exemplars reaches the others within a second
        found = exemplars_of(server)
        assert {"pilothouse_probe_score_bucket", "pilothouse_probe_requests_total"} <= set(found)
        for name in set.union(*found.values()):
            record = server.get(f"/v1/probes/results/{name}", headers=ADMIN)
            assert record.status_code == 200, record.text


def test_a_killed_server_loses_its_last_batch_at_most(tmp_path: Path) -> None:
    answered = []
    with serving(tmp_path, "--enforce-eager") as server:
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
            for number in range(N_BEFORE_THE_KILL):
                body = {"model": "harbor", "prompt": f"Number {number} is", "max_tokens": 2}
                answered.append(client.post("/v1/completions", json=body).json()["id"])
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(timeout=60)
    with sqlite3.connect(tmp_path / "records.sqlite") as connection:
        stored = [row[0] for row in connection.execute("select response_id from responses order by id")]
    # One after the other, so records are in the order of the answers, and only what waited is missing.
    assert stored == answered[: len(stored)]
    lost = len(answered) - len(stored)
    assert lost <= WriterLimits().batch_records
    assert len(stored) > N_BEFORE_THE_KILL // 2
