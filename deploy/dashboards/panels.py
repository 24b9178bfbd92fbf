"""Panels as this project draws them: each has a width, a unit and a description."""

from collections.abc import Sequence
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.runtime import UnknownDataquery
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import text as text_model

DATASOURCE = looks.DataSourceRef(type_val="prometheus", uid="${datasource}")
OTHER_PANEL = looks.DataSourceRef(type_val="datasource", uid="-- Dashboard --")
HEIGHT, TALL = 8, 10
"""Of a panel, in rows of the grid: of most, and of tables of requests."""

LIMIT = " limit"
"""How the names of series end that are drawn dashed."""

Steps = Sequence[tuple[float | None, str]]
"""From which value on, which colour; None for the lowest."""
Query = tuple[str, str]
"""A query and its series' name."""

SHARE_STEPS: Steps = ((None, "green"), (0.1, "yellow"), (0.2, "red"))
ANY_IS_BAD: Steps = ((None, "green"), (1, "red"))
PLAIN: Steps = ((None, "blue"),)


class Annotations:
    """What another panel of the dashboard shows as points: its exemplars."""

    def __init__(self, panel_id: int) -> None:
        self._panel_id = panel_id

    def build(self) -> UnknownDataquery:
        return UnknownDataquery(
            {"refId": "A", "datasource": OTHER_PANEL, "panelId": self._panel_id, "topic": "annotations"}
        )


def stat_of(title: str, about: str, query: str, unit: str, steps: Steps = PLAIN, width: int = 4) -> stat.Panel:
    """One number, of now or of the whole range."""
    return (
        _begun(stat.Panel(), title, about, width, 4)
        .with_target(_target(query, title, 0).instant())
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .reduce_options(_reduced_by("lastNotNull"))
        .no_value("none yet")
    )


def bars(title: str, about: str, queries: Sequence[Query], unit: str, steps: Steps, width: int = 8) -> bargauge.Panel:
    """One bar a series, of now."""
    panel = _begun(bargauge.Panel(), title, about, width, HEIGHT)
    for number, (query, legend) in enumerate(queries):
        panel = panel.with_target(_target(query, legend, number).instant())
    return (
        panel.unit(unit)
        .thresholds(_thresholds(steps))
        .orientation(looks.VizOrientation.HORIZONTAL)
        .reduce_options(_reduced_by("lastNotNull"))
        .no_value("none yet")
    )


def lines(
    title: str,
    about: str,
    queries: Sequence[Query],
    unit: str,
    *,
    width: int = 8,
    steps: Steps | None = None,
    top: float | None = None,
    exemplars: bool = False,
    stacked: bool = False,
    height: int = HEIGHT,
) -> timeseries.Panel:
    """Series over time. exemplars: of the first query; steps: drawn as dashed lines; top: of the axis."""
    panel = _begun(timeseries.Panel(), title, about, width, height)
    for number, (query, legend) in enumerate(queries):
        panel = panel.with_target(_target(query, legend, number).range().exemplar(exemplars and number == 0))
    panel = (
        panel.unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(40 if stacked else 8)
        .show_points(looks.VisibilityMode.AUTO)
        .thresholds(_thresholds(steps or PLAIN))
        .thresholds_style(_steps_drawn(dashed=steps is not None))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    )
    panel = panel.override_by_regexp(f"/{LIMIT}$/", [_value("custom.lineStyle", {"fill": "dash", "dash": [10, 10]})])
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    return panel if top is None else panel.axis_soft_max(top)


def heat(
    title: str,
    about: str,
    query: str,
    unit: str,
    *,
    width: int = 24,
    repeat: str | None = None,
    exemplars: bool = False,
) -> heatmap.Panel:
    """A histogram over time. repeat: a variable, each value of which has a panel of its own."""
    panel = (
        _begun(heatmap.Panel(), title, about, width, HEIGHT)
        .with_target(_target(query, "{{le}}", 0).range().format("heatmap").exemplar(exemplars))
        .unit("short")
        .thresholds(_thresholds(PLAIN))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap_model.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .fill("dark-orange")
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(looks.AxisPlacement.LEFT))
        .cell_values(heatmap.CellValues().unit("short"))
        .exemplars_color("rgba(0, 0, 200, 0.8)")
        .cell_gap(1)
        .show_legend()
        .tooltip(
            heatmap.HeatmapTooltip().mode(looks.TooltipDisplayMode.SINGLE).y_histogram(True).show_color_scale(True)
        )
    )
    return panel if repeat is None else panel.repeat(repeat).repeat_direction("h").max_per_row(2)


def facts(title: str, about: str, query: str, columns: dict[str, str], unit: str, width: int = 24) -> table.Panel:
    """Labels of the series of now as a table; columns: the name of each label that is shown, in order."""
    kept = [*columns, "Value"]
    organise = {
        "includeByName": dict.fromkeys(kept, True),
        "indexByName": {name: place for place, name in enumerate(kept)},
        "renameByName": columns,
    }
    return (
        _begun(table.Panel(), title, about, width, HEIGHT)
        .with_target(_target(query, "", 0).instant().format("table"))
        .with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=organise))
        .unit(unit)
        .thresholds(_thresholds(PLAIN))
        .filterable(True)
    )


def exemplars_of(
    panel_id: int, title: str, about: str, by: Literal["time", "score"], descending: bool = True
) -> table.Panel:
    """The exemplars of another panel, one row each, with links to the request's record and to its trace.

    by: the column that they are sorted by; of counters the exemplars have no score.
    """
    shown = {"Time": "time", **({"Value": "score"} if by == "score" else {}), "probe": "probe", "steering": "steering"}
    shown |= {"model_name": "model", "request_id": "request", "trace_id": "trace"}
    organise = {
        "includeByName": dict.fromkeys(shown, True),
        "indexByName": {name: place for place, name in enumerate(shown)},
        "renameByName": shown,
    }
    record = _link("Tokens and scores", "${server_url}/console/results/${__value.raw}")
    trace = _link("Trace", "${traces_url}/trace/${__value.raw}")
    return (
        _begun(table.Panel(), title, about, 16, TALL)
        .datasource(OTHER_PANEL)
        .with_target(Annotations(panel_id))
        .with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=organise))
        .unit("short")
        .thresholds(_thresholds(PLAIN))
        .override_by_name("score", [_value("unit", "percentunit"), _value("decimals", 1)])
        .override_by_name("request", [_value("links", [record])])
        .override_by_name("trace", [_value("links", [trace])])
        .sort_by([common.TableSortByFieldState().display_name(by).desc(descending)])
        .filterable(True)
        .no_value("no exemplars in this range")
    )


def words(title: str, about: str, content: str, width: int = 24, height: int = 5) -> text.Panel:
    """Text in Markdown."""
    return _begun(text.Panel(), title, about, width, height).mode(text_model.TextMode.MARKDOWN).content(content)


def _reduced_by(calculation: str) -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs([calculation]).values(False)


def _steps_drawn(dashed: bool) -> common.GraphThresholdsStyleConfig:
    mode = looks.GraphThresholdsStyleMode.DASHED if dashed else looks.GraphThresholdsStyleMode.OFF
    return common.GraphThresholdsStyleConfig().mode(mode)


def _begun(panel: Any, title: str, about: str, width: int, height: int) -> Any:
    return panel.title(title).description(about).datasource(DATASOURCE).span(width).height(height)


def _target(query: str, legend: str, number: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().expr(query).legend_format(legend).ref_id(chr(ord("A") + number)).datasource(DATASOURCE)
    )


def _thresholds(steps: Steps) -> build.ThresholdsConfig:
    return (
        build.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _link(title: str, url: str) -> dict[str, Any]:
    return {"title": title, "url": url, "targetBlank": True}


def _value(name: str, value: Any) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(id_val=name, value=value)
