"""What every query, exemplar and alert came to, to be asserted or printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deploy_support import boards
from deploy_support.boards import Query
from deploy_support.prometheus import Prometheus


@dataclass(frozen=True)
class Answer:
    """What Prometheus said to one query. shown: the same as the panel's filled text."""

    query: Query
    shown: str
    series: list[dict[str, Any]]

    @property
    def numbers(self) -> list[float]:
        """The values that can be drawn."""
        return [value for series in self.series if not math.isnan(value := float(series["value"][1]))]

    @property
    def unlabelled(self) -> set[str]:
        """Labels of the legend that some series lacks."""
        return {
            label for label in self.query.labels_of_series for series in self.series if label not in series["metric"]
        }


def ask_all(prometheus: Prometheus) -> list[Answer]:
    """Every query of every panel, with all models, probes, vectors and steerings chosen."""
    variables = prometheus.variables()
    found = []
    for query in boards.queries():
        text = query.filled(variables)
        found.append(Answer(query, text, prometheus.query(text)))
    return found


def exemplars_of_all(prometheus: Prometheus) -> dict[str, list[dict[str, Any]]]:
    """The exemplars of every query whose panel shows them, by the query's name."""
    variables = prometheus.variables()
    return {query.name: prometheus.exemplars(query.filled(variables)) for query in boards.queries() if query.exemplar}
