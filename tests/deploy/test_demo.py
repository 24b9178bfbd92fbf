"""The dashboards, rules and exemplars over a live server: what `make dashboards-demo` shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy_support.demo import MANY, ROUNDS, demonstrating, requests_of
from deploy_support.report import ask_all, exemplars_of_all
from deploy_support.traffic import FABLES, KINDS, LIES

pytestmark = [pytest.mark.slow, pytest.mark.engine]

NEEDS_A_FAULT = {
    "Overhead and health / Gaps by kind / A",
    "Overhead and health / Sink errors / A",
    "Overhead and health / Records / B",
}
"""Queries of series that begin with a fault: tests/deploy/test_queries.py shows them with data."""


def test_panels_exemplars_and_alerts_of_a_live_server(programs: Path, tmp_path: Path) -> None:
    with demonstrating(tmp_path, programs) as demo:
        prometheus, traffic = demo.prometheus, demo.traffic
        prometheus.wait(lambda p: p.numbers('sum(up{job="pilothouse"})') == [1])

        traffic.send(KINDS, ROUNDS)
        assert not prometheus.firing()

        traffic.send(KINDS | LIES, ROUNDS)
        traffic.send(FABLES, MANY * ROUNDS)
        prometheus.wait(lambda p: "PilothouseFlaggedHigh" in p.firing())

        traffic.label(ROUNDS)
        traffic.send(KINDS | LIES, 2)
        assert not traffic.failed
        assert {answer.query.name for answer in ask_all(prometheus) if not answer.numbers} <= NEEDS_A_FAULT
        assert prometheus.firing() <= {"PilothouseFlaggedHigh", "PilothouseScoreDrift"}
        flagged = prometheus.query('ALERTS{alertname="PilothouseFlaggedHigh"}')
        assert [alert["metric"]["probe"] for alert in flagged] == ["hallucination"]

        for name, exemplars in exemplars_of_all(prometheus).items():
            assert exemplars, name
            assert demo.records_found(exemplars) == len(requests_of(exemplars)), name
            assert all(len(exemplar["labels"]["trace_id"]) == 32 for exemplar in exemplars)
        page = demo.server.get(f"/console/results/{requests_of(exemplars).pop()}")
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]

        demo.server.process.terminate()
        demo.server.process.wait(timeout=120)
        prometheus.wait(lambda p: "PilothouseTargetDown" in p.firing())
