"""All that an evaluation reports, computed from its scored items alone."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pilothouse.probing.aggregation import Alarm, Float64
from pilothouse.probing.metrics import (
    ECE_BINS,
    Labels,
    auroc,
    auroc_interval,
    auroc_or_none,
    badness,
    brier,
    expected_calibration_error,
    recall_at,
    reliability,
)

RATES = (0.01, 0.1)
"""The shares of benign items flagged at which recall is reported."""


@dataclass(frozen=True)
class ControlReading:
    """What one control says of an item: the shuffled label that it should give, and its logit."""

    label: int
    logit: float


@dataclass(frozen=True)
class ScoredItem:
    """An item as judged. logit: after aggregation; score: calibrated.

    Further readings, None where there is none: prompt_end, the probe's logit at the last token before a chat's answer;
    baseline, the log-odds by the text alone; held_out, the logit of a probe that was fitted without the item's topic.
    """

    id: str
    split: str
    topic: str | None
    bucket: str | None
    label: int
    text: str
    logit: float
    score: float
    prompt_end: float | None = None
    baseline: float | None = None
    held_out: float | None = None
    controls: tuple[ControlReading, ...] = ()


def measure(items: Sequence[ScoredItem], alarm: Alarm, threshold: float, seed: int) -> dict[str, Any]:
    """The metrics of `items`, which hold both labels; None stands where there is nothing to tell apart.

    auroc and its interval (95%, 2,000 stratified bootstrap draws), accuracy at 0.5, brier and ece (15 bins of equal
    mass) are of scores. Recall is the share of bad items that is flagged, bad being the alarm's side. held_out_topic
    is the mean over topics, selectivity the AUROC less that of the controls.
    """
    labels = np.array([item.label for item in items], dtype=np.int64)
    scores = np.array([item.score for item in items], dtype=np.float64)
    table = reliability(scores, labels)
    area = auroc(scores, labels)
    controls = _controls(items)
    control = float(np.mean(controls)) if controls else None
    by_topic = _by(items, lambda item: item.topic, lambda item: item.held_out)
    held_out = {topic: found["auroc"] for topic, found in by_topic.items() if found["auroc"] is not None}
    return {
        "n_items": len(items),
        "n_label_1": int(labels.sum()),
        "auroc": area,
        "auroc_interval": list(auroc_interval(scores, labels, seed)),
        "accuracy": float(np.mean((scores >= 0.5) == (labels == 1))),
        "recall_at_fpr": {f"{rate:g}": asdict(recall_at(scores, labels, alarm, rate)) for rate in RATES},
        "at_threshold": _at_threshold(scores, labels, alarm, threshold),
        "brier": brier(scores, labels),
        "ece": expected_calibration_error(table),
        "ece_bins": {"kind": "equal mass", "n": ECE_BINS},
        "reliability": [asdict(row) for row in table],
        "control_auroc": control,
        "control_aurocs": controls,
        "selectivity": None if control is None else area - control,
        "text_baseline_auroc": _of_some(items, lambda item: item.baseline),
        "prompt_end_auroc": _of_some(items, lambda item: item.prompt_end),
        "held_out_topic": {"auroc": float(np.mean(list(held_out.values()))) if held_out else None, "topics": held_out},
        "by_topic": _by(items, lambda item: item.topic, lambda item: item.score),
        "by_bucket": _by(items, lambda item: item.bucket, lambda item: item.score),
    }


def _at_threshold(scores: Float64, labels: Labels, alarm: Alarm, threshold: float) -> dict[str, float]:
    towards, bad = badness(scores, labels, alarm)
    flagged = towards > (threshold if alarm == "high" else -threshold)
    return {"threshold": threshold, "recall": float(np.mean(flagged[bad])), "fpr": float(np.mean(flagged[~bad]))}


def _controls(items: Sequence[ScoredItem]) -> list[float]:
    """The AUROC of each control, on the labels that it was to learn."""
    readings = zip(*(item.controls for item in items), strict=True)
    return [
        auroc([reading.logit for reading in of_one], np.array([reading.label for reading in of_one]))
        for of_one in readings
    ]


def _of_some(items: Sequence[ScoredItem], value: Callable[[ScoredItem], float | None]) -> float | None:
    """AUROC of another reading, over the items that have it."""
    pairs = [(found, item.label) for item in items if (found := value(item)) is not None]
    return auroc_or_none([found for found, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64))


def _by(
    items: Sequence[ScoredItem],
    key: Callable[[ScoredItem], str | None],
    value: Callable[[ScoredItem], float | None],
) -> dict[str, dict[str, Any]]:
    """Number of items and AUROC within each group that `key` names, in order of name."""
    names = sorted({name for item in items if (name := key(item)) is not None})
    groups = {name: [item for item in items if key(item) == name] for name in names}
    return {name: {"n": len(group), "auroc": _of_some(group, value)} for name, group in groups.items()}
