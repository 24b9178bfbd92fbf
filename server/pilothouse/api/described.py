"""What a response says of each probe, and of why it was flagged."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from pilothouse.api.scoring import Decode, Report
from pilothouse.core.listing import numbers
from pilothouse.probing import Probe
from pilothouse.probing.aggregation import Aggregate, Alarm
from pilothouse.probing.words import past, tellings

_OF_ONE = ("last", "min", "max", "prompt_end")
"""Statistics that are the logit of one token."""


def describe(reports: Sequence[Report], token: Decode) -> list[dict[str, Any]]:
    """The entry of each probe in a response, token lists apart; `token` is the text of a generated token, by index."""
    return [
        _entry(report, stats, reasons)
        for report, stats, reasons in zip(reports, _shown_stats(reports), _reasons(reports, token), strict=True)
    ]


def _entry(report: Report, stats: dict[str, Any], reasons: list[dict[str, Any]]) -> dict[str, Any]:
    probe = report.probe
    shown: dict[str, Any] = {
        "score": report.score,
        "level": report.level,
        "label": probe.label,
        "alarm": probe.alarm,
        "threshold": probe.threshold,
        "flagged": report.flagged,
        "reasons": reasons,
        "aggregate": probe.aggregate,
        "version": probe.version,
        "stats": stats,
        "n_scored": report.n_scored,
    }
    if report.reason is not None:
        shown["reason"] = report.reason
    return shown


def _shown_stats(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """The statistics of each probe; those that are the logit of one token are written as among the tokens."""
    found = [dict(vars(report.stats)) for report in reports]
    of_one = np.array([[stats[name] for name in _OF_ONE] for stats in found], dtype=np.float32)
    shown = iter(numbers(of_one.ravel()))
    for stats in found:
        for name in _OF_ONE:
            stats[name] = next(shown)
    return found


def _reasons(reports: Sequence[Report], token: Decode) -> list[list[dict[str, Any]]]:
    """Why a choice was flagged, by probe; empty where it was not."""
    found: list[list[dict[str, Any]]] = [[] for _ in reports]
    asked: list[int] = []
    for k, report in enumerate(reports):
        probe = report.probe
        if not report.flagged or report.score is None:
            continue
        if probe.aggregate == "prompt_end":
            beyond = past(report.score, probe.alarm, probe.threshold)
            found[k] = [{"prompt_end": True, "score": report.score, "past": beyond}]
        else:
            asked.append(k)
    if not asked:
        return found
    scores = reports[0].all_scores()[asked]
    logits = np.array([reports[k].logits for k in asked])
    told = tellings(scores, logits, [_rests_on(reports[k].probe) for k in asked])
    rows = np.repeat(np.arange(len(asked)), [len(tokens) for tokens in told])
    shown = iter(numbers(scores[rows, np.concatenate(told)]))
    for k, tokens in zip(asked, told, strict=True):
        probe = reports[k].probe
        for j in tokens:
            # Only of tokens that have one.
            score = cast(float, next(shown))
            beyond = past(score, probe.alarm, probe.threshold)
            found[k].append({"token": token(j), "index": j, "score": score, "past": beyond})
    return found


def _rests_on(probe: Probe) -> tuple[Aggregate, Alarm, float]:
    return probe.aggregate, probe.alarm, probe.threshold
