"""Every query of every panel and every alert, asked of a real Prometheus that scrapes something well, then ill."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from deploy_support import boards
from deploy_support.exporter import FEATURE, Exporter, exporting
from deploy_support.prometheus import hurried, running
from deploy_support.report import Answer, ask_all, exemplars_of_all

NEEDS_A_FAULT = {
    "Overhead and health / Gaps by kind / A",
    "Overhead and health / Sink errors / A",
    "Overhead and health / Records / B",
}
"""Queries that have no series while all is well."""

NEEDS_A_DAY = "PilothouseFlaggedAboveHistory"
NEEDS_NO_TARGET = {"PilothouseTargetDown", "PilothouseTargetMissing"}


class Run:
    """What was seen: while all was well, while it was not, and once nothing answered any more."""

    def __init__(self, folder: Path, programs: Path) -> None:
        exporter = Exporter()
        with ExitStack() as stack:
            targets = stack.enter_context(exporting(exporter))
            self.targets = targets
            prometheus = stack.enter_context(
                running(folder, programs, [*targets.values()], change_rules=hurried, interval="500ms")
            )
            prometheus.wait(lambda p: min(p.numbers("count_over_time(up[1m])"), default=0) >= 5)
            prometheus.wait(lambda p: bool(p.query("pilothouse:probe_flagged:limit")))
            self.names = set(prometheus.values('{job="pilothouse"}', "__name__"))
            self.variables = prometheus.variables()
            self.exemplars = exemplars_of_all(prometheus)
            self.well, self.alerts_well = ask_all(prometheus), prometheus.firing()
            exporter.ill = True
            prometheus.wait(lambda p: p.firing() >= set(p.alerts()) - NEEDS_NO_TARGET - {NEEDS_A_DAY})
            self.alerts = set(prometheus.alerts())
            self.ill, self.alerts_ill = ask_all(prometheus), prometheus.firing()
            flagged = prometheus.query('ALERTS{alertname="PilothouseFlaggedHigh"}')
            self.flagged = {alert["metric"]["probe"] for alert in flagged}
            exporter.silent = True
            prometheus.wait(lambda p: "PilothouseTargetDown" in p.firing())


@pytest.fixture(scope="module")
def run(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("prometheus"), programs)


def test_every_query_has_data_while_all_is_well(run: Run) -> None:
    assert {answer.query.name for answer in run.well if not answer.numbers} == NEEDS_A_FAULT


def test_every_query_has_data_once_something_is_wrong(run: Run) -> None:
    assert not [answer.query.name for answer in run.ill if not answer.numbers]


def test_series_have_the_labels_that_their_names_show(run: Run) -> None:
    assert not {answer.query.name: answer.unlabelled for answer in run.ill if answer.unlabelled}


def test_shares_are_shares(run: Run) -> None:
    units = {
        f"{title} / {panel['title']}": panel["fieldConfig"]["defaults"].get("unit")
        for title, panel in boards.panels()
        if panel["type"] in ("timeseries", "stat")
    }
    shares = [a for a in (*run.well, *run.ill) if units.get(a.query.name.rpartition(" / ")[0]) == "percentunit"]
    assert len(shares) > 20
    for answer in shares:
        if answer.query.panel != "Share of the engine's time":
            assert all(-1e-9 <= value <= 1 + 1e-9 for value in answer.numbers), (answer.shown, answer.numbers)


def test_what_is_shown_is_what_was_said(run: Run) -> None:
    def said(answers: list[Answer], name: str) -> dict[tuple[str, ...], float]:
        answer = next(answer for answer in answers if answer.query.name == name)
        return {
            tuple(series["metric"].get(label, "") for label in ("probe", "steering")): float(series["value"][1])
            for series in answer.series
        }

    overview = "Hallucination overview"
    assert said(run.well, f"{overview} / Flagged by probe / A")["made-up", ""] == pytest.approx(0.05, abs=0.01)
    assert said(run.well, f"{overview} / Flagged by probe / B") == {("made-up", ""): 0.2, ("true", ""): 0.2}
    # Of "true" low scores are bad: of the unsteered ones half are past the threshold, of the steered ones all.
    by_steering = said(run.well, f"{overview} / Flagged by steering / A")
    assert by_steering == {
        ("made-up", "none"): pytest.approx(0.5, abs=0.01),
        ("made-up", "kind"): pytest.approx(0, abs=0.01),
        ("true", "none"): pytest.approx(0.5, abs=0.01),
        ("true", "kind"): pytest.approx(1, abs=0.01),
        (FEATURE, "none"): 1,
        (FEATURE, "kind"): 1,
    }
    effect = said(run.well, "Steering / Mean score, less that of unsteered requests / A")
    assert effect["made-up", "kind"] == pytest.approx(0.2 - 0.575, abs=0.01)
    assert effect["made-up", "none"] == pytest.approx(0, abs=1e-9)
    assert said(run.well, "Overhead and health / Tokens scored, of those expected / A")["true", ""] == 1
    assert said(run.ill, "Overhead and health / Tokens scored, of those expected / A")["true", ""] < 1


def test_exemplars_name_request_and_trace(run: Run) -> None:
    assert len(run.exemplars) >= 6
    for name, exemplars in run.exemplars.items():
        assert exemplars, name
        assert all({"request_id", "trace_id"} == set(exemplar["labels"]) for exemplar in exemplars), name
    flagged = run.exemplars["Hallucination overview / Choices flagged / A"]
    assert {exemplar["series"]["flagged"] for exemplar in flagged} == {"true"}


def test_variables_have_values(run: Run) -> None:
    assert run.variables["alarm_high"] == f"({FEATURE}|made-up)"
    assert run.variables["alarm_low"] == "(true)"


def test_vllms_names_keep_their_colons_whatever_is_asked_for(run: Run) -> None:
    assert "vllm:num_requests_running" in run.names
    assert not any(name.startswith("vllm_") for name in run.names)


def test_no_alert_fires_while_all_is_well(run: Run) -> None:
    assert not run.alerts_well


def test_every_alert_fires_on_its_fault(run: Run) -> None:
    """The one on a day's history is shown by promtool."""
    assert run.alerts_ill == run.alerts - NEEDS_NO_TARGET - {NEEDS_A_DAY}
    assert run.flagged == {"made-up", "true"}
