"""What the dashboards have in common: variables, links to each other, and the way panels are laid out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from dashboards.panels import DATASOURCE

TAG = "pilothouse"
COLUMNS = 24
EVERYTHING = ".*"


@dataclass(frozen=True)
class Section:
    """A titled part of a dashboard. rows: panels side by side, at most 24 columns wide together."""

    title: str
    rows: Sequence[Sequence[Any]]


def _values(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": f"variable-{name}"})
        .definition(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .current(dashboard.VariableOption(text="All", value="$__all", selected=True))
    )


def choice(name: str, label: str, query: str) -> build.QueryVariable:
    """A variable of label values, several of which may be chosen; all are, at first."""
    return _values(name, label, query).multi(True).include_all(True).all_value(EVERYTHING)


def hidden_choice(name: str, label: str, query: str) -> build.QueryVariable:
    """Label values that queries use, and that nobody chooses."""
    return _values(name, label, query).multi(True).include_all(True).hide(dashboard.VariableHide.HIDE_VARIABLE)


def place(name: str, label: str, url: str) -> build.TextBoxVariable:
    """An address that links begin with."""
    return build.TextBoxVariable(name).label(label).default_value(url)


MODEL = choice("model", "Model", 'label_values({__name__=~"pilothouse_.+"}, model_name)')
PROBE = choice("probe", "Probe", 'label_values({__name__=~"pilothouse_probe_.+", model_name=~"$model"}, probe)')
STEERING = choice("steering", "Steering", 'label_values(pilothouse_requests_total{model_name=~"$model"}, steering)')
VECTOR = choice("vector", "Vector", 'label_values({__name__=~"pilothouse_.+", model_name=~"$model"}, vector)')


def board(uid: str, title: str, about: str, variables: Sequence[Any], sections: Sequence[Section]) -> dict[str, Any]:
    """A dashboard as Grafana's classic JSON. Panels are numbered in the order in which they are read."""
    built = (
        build.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .readonly()
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("Pilothouse")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in variables:
        built = built.with_variable(variable)
    raw: dict[str, Any] = json.loads(JSONEncoder().encode(built.build()))
    panels = _placed(sections)
    for number, panel in enumerate(panels, start=1):
        # Panels that others refer to have said their own.
        panel.setdefault("id", number)
    return {"id": None, **raw, "panels": panels, "version": 1}


def _placed(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """All panels with their places, each section under its title."""
    placed: list[dict[str, Any]] = []
    y = 0
    for section in sections:
        at = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        placed.append({"type": "row", "title": section.title, "collapsed": False, "panels": [], "gridPos": at})
        y += 1
        for row in section.rows:
            built = [json.loads(JSONEncoder().encode(panel.build())) for panel in row]
            x = 0
            for panel in built:
                panel["gridPos"] |= {"x": x, "y": y}
                x += panel["gridPos"]["w"]
            y += max(panel["gridPos"]["h"] for panel in built)
            placed += built
    return placed
