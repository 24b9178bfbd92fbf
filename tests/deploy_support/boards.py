"""The dashboards' files as the tests read them: panels, queries, and the values of their variables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy_support.paths import DASHBOARDS

WINDOWS = {"$__rate_interval": "10s", "$__range": "60s", "$__interval": "1s"}
METRIC = re.compile(r"\b(?:pilothouse|vllm)[_:][a-z0-9_:]+")
_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")
_SELECTOR = re.compile(r"([a-z_:][a-z0-9_:]*)\{([^}]*)\}")
_STRING = re.compile(r'"[^"]*"')


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    board: str
    panel: str
    ref: str
    text: str
    legend: str
    exemplar: bool

    @property
    def name(self) -> str:
        return f"{self.board} / {self.panel} / {self.ref}"

    @property
    def metrics(self) -> set[str]:
        return set(METRIC.findall(_STRING.sub('""', self.text)))

    @property
    def labels_of_series(self) -> set[str]:
        """The labels that its legend shows."""
        return set(re.findall(r"\{\{(\w+)\}\}", self.legend)) - {"le"}

    @property
    def matched(self) -> Iterator[tuple[str, set[str]]]:
        """Metrics with the labels that its selectors name."""
        for metric, matchers in _SELECTOR.findall(self.text):
            yield metric, set(re.findall(r"(\w+)\s*[=!]", _STRING.sub('""', matchers)))

    def filled(self, values: Mapping[str, str]) -> str:
        """With variables replaced, as Grafana does; longer names first. `$1` is PromQL's."""
        text = self.text
        for name in sorted(WINDOWS, key=len, reverse=True):
            text = text.replace(name, WINDOWS[name])
        for name in sorted(values, key=len, reverse=True):
            text = text.replace(f"${name}", values[name])
        assert not re.search(r"\$(?!1\b)", text), text
        return text


def boards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by uid."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))]
    return {board["uid"]: board for board in found}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """All panels but the titles of rows, each with its dashboard's title."""
    for board in boards().values():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield board["title"], panel


def queries() -> list[Query]:
    """Every query of every panel that asks Prometheus."""
    return [
        Query(
            title,
            panel["title"],
            target["refId"],
            target["expr"],
            target["legendFormat"],
            target.get("exemplar", False),
        )
        for title, panel in panels()
        for target in panel.get("targets", ())
        if "expr" in target
    ]


def variables() -> dict[str, tuple[str, str]]:
    """Variables of label values: the selector and the label of each."""
    found = {}
    for board in boards().values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                match = _LABEL_VALUES.fullmatch(variable["query"]["query"])
                assert match, variable
                found[variable["name"]] = (match[1], match[2])
    return found
