"""Thresholds that flag a given share of benign traffic."""

import math
from typing import Any

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.aggregation import Alarm, Float64
from pilothouse.probing.metrics import Labels, badness, cutoff_at

CARD_RATES = (0.01, 0.05)
"""The shares whose thresholds every trained probe has on its card."""

_WHERE = "in the calibrate split, which has"


def threshold_at(scores: Float64, labels: Labels, alarm: Alarm, fpr: float, where: str = _WHERE) -> float:
    """The threshold past which at most `fpr` of the benign items' scores lie, as near to it as their number allows.

    Benign is label 0 when high scores are bad, label 1 when low ones are. The threshold is the score of an item and is
    not flagged itself: between two scores the side that flags less is taken. ArtefactError for fewer than 1 / fpr
    benign items, where even one flagged item would be too many; `where` says whose items they are.
    """
    check_supported(labels, alarm, fpr, where)
    return cut_at(scores, labels, alarm, fpr)


def cut_at(scores: Float64, labels: Labels, alarm: Alarm, fpr: float) -> float:
    """As `threshold_at`, of benign items however few."""
    towards, bad = badness(scores, labels, alarm)
    cutoff = cutoff_at(towards[~bad], fpr)
    return cutoff if alarm == "high" else -cutoff


def check_supported(labels: Labels, alarm: Alarm, fpr: float, where: str = _WHERE) -> None:
    """ArtefactError unless `fpr` is a rate and there are benign items enough to find its threshold among."""
    if not 0 < fpr < 1:
        raise ArtefactError(f"a rate of false positives is between 0 and 1, not {fpr}")
    benign = 0 if alarm == "high" else 1
    n, needed = int((labels == benign).sum()), math.ceil(1 / fpr - 1e-9)
    if n < needed:
        raise ArtefactError(
            f"a threshold at {fpr:.3g} false positives needs {needed} benign items (label {benign}) {where} {n}"
        )


def threshold_table(scores: Float64, labels: Labels, alarm: Alarm, where: str = _WHERE) -> dict[str, dict[str, Any]]:
    """For the card: by rate, the threshold and the shares that it flags of the items that chose it, or why there is
    none."""
    table: dict[str, dict[str, Any]] = {}
    towards, bad = badness(scores, labels, alarm)
    for fpr in CARD_RATES:
        try:
            threshold = threshold_at(scores, labels, alarm, fpr, where)
        except ArtefactError as error:
            table[f"{fpr:g}"] = {"threshold": None, "reason": str(error)}
            continue
        flagged = towards > (threshold if alarm == "high" else -threshold)
        table[f"{fpr:g}"] = {
            "threshold": threshold,
            "flagged_benign": float(np.mean(flagged[~bad])),
            "flagged_bad": float(np.mean(flagged[bad])),
            "n_benign": int((~bad).sum()),
        }
    return table
