"""The dashboards' files: fresh, whole, legible, and asking only for what exists."""

from __future__ import annotations

import re
from typing import Any

import pytest
from deploy_support import boards, catalogue
from deploy_support.boards import Query
from deploy_support.paths import DASHBOARDS, RULES
from grafana_foundation_sdk.models import dashboard as sdk

from dashboards.__main__ import dashboards, text

BOARDS = boards.boards()
PANELS = list(boards.panels())
QUERIES = boards.queries()
TITLES = [f"{title} / {panel['title']}" for title, panel in PANELS]
DRAWS_NUMBERS = {"timeseries", "stat", "bargauge", "heatmap", "table"}


def test_the_files_are_what_the_scripts_write() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS.glob("*.json")}
    assert committed == {name: text(board) for name, board in dashboards().items()}, "run `make dashboards`"


def test_there_are_three_each_with_a_place_of_its_own() -> None:
    assert {uid: board["title"] for uid, board in BOARDS.items()} == {
        "pilothouse-hallucination": "Hallucination overview",
        "pilothouse-steering": "Steering",
        "pilothouse-health": "Overhead and health",
    }
    assert all(board["id"] is None for board in BOARDS.values())


@pytest.mark.parametrize("uid", BOARDS)
def test_grafanas_own_model_reads_the_file(uid: str) -> None:
    read = sdk.Dashboard.from_json(BOARDS[uid])
    assert (read.uid, read.title) == (uid, BOARDS[uid]["title"])
    assert read.panels is not None
    assert len(read.panels) == len(BOARDS[uid]["panels"])


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_fill_the_grid_without_overlap(uid: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARDS[uid]["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            assert x < 24, panel["title"]
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = 1 + max(y for _, y in taken)
    assert len(taken) == 24 * height, "there are holes"


@pytest.mark.parametrize("uid", BOARDS)
def test_numbers_of_panels_differ(uid: str) -> None:
    numbers = [panel["id"] for panel in BOARDS[uid]["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=TITLES)
def test_a_panel_explains_itself(title: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 10
    if panel["type"] in DRAWS_NUMBERS:
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"]
        assert defaults["thresholds"]["steps"][0]["value"] is None


@pytest.mark.parametrize(("title", "panel"), PANELS, ids=TITLES)
def test_a_panel_asks_the_chosen_source(title: str, panel: dict[str, Any]) -> None:
    known = {number["id"] for number in next(b for b in BOARDS.values() if b["title"] == title)["panels"]}
    for target in panel.get("targets", ()):
        if "expr" in target:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        else:
            assert target["panelId"] in known
            assert target["topic"] == "annotations"
    assert panel["type"] == "text" or panel["targets"]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_a_query_asks_for_what_exists(query: Query) -> None:
    stored = catalogue.stored()
    recorded = recorded_names()
    for metric in query.metrics:
        assert metric in stored or metric in recorded, f"{metric} is neither a metric nor recorded by a rule"
    for metric, labels in query.matched:
        allowed = {*stored.get(metric, ("model_name", "probe")), "le", "job", "alertname", "alertstate"}
        assert labels <= allowed, f"{metric} has no label {labels - allowed}"


def test_rates_are_of_counters_over_grafanas_own_windows() -> None:
    assert any("$__rate_interval" in query.text for query in QUERIES)
    for query in QUERIES:
        assert set(re.findall(r"\[(\$?[\w:]+)\]", query.text)) <= {"$__rate_interval", "$__range"}, query.name


def test_rows_of_requests_lead_to_record_and_trace() -> None:
    tables = [panel for _, panel in PANELS if panel["datasource"]["uid"] == "-- Dashboard --"]
    assert len(tables) == 3
    sources = {panel["id"]: panel for _, panel in PANELS}
    for table in tables:
        assert sources[table["targets"][0]["panelId"]]["targets"][0]["exemplar"] is True
        properties = {o["matcher"]["options"]: o["properties"] for o in table["fieldConfig"]["overrides"]}
        links = {name: properties[name][0]["value"][0]["url"] for name in ("request", "trace")}
        assert links == {
            "request": "${server_url}/console/results/${__value.raw}",
            "trace": "${traces_url}/trace/${__value.raw}",
        }


def test_the_list_of_metrics_is_the_codes() -> None:
    """Every metric of the table is shown or alerted on somewhere; what is shown nowhere is of no use to anybody."""
    rules = "\n".join(path.read_text(encoding="utf-8") for path in RULES.glob("*.yml"))
    asked = {metric for query in QUERIES for metric in query.metrics} | set(boards.METRIC.findall(rules))
    unseen = {family.name for family in catalogue.own() if not asked.intersection((family.name, *family.samples))}
    assert not unseen


def test_vllm_has_the_metrics_that_are_shown() -> None:
    declared = catalogue.declared_by_vllm()
    assert {family.name.removesuffix("_total"): family.kind for family in catalogue.VLLM}.items() <= declared.items()


def recorded_names() -> set[str]:
    """What the recording rules record."""
    lines = (RULES / "recording.yml").read_text(encoding="utf-8").splitlines()
    return {line.split("record:")[1].strip() for line in lines if "record:" in line}
