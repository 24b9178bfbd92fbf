"""All that an evaluation reports, computed from its scored items alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pilothouse.probing.aggregation import Alarm, Float64
from pilothouse.probing.bootstrap import auroc_interval, clusters
from pilothouse.probing.metrics import (
    Labels,
    auroc,
    auroc_or_none,
    badness,
    bins_for,
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
    group: str | None
    label: int
    text: str
    logit: float
    score: float
    prompt_end: float | None = None
    baseline: float | None = None
    held_out: float | None = None
    controls: tuple[ControlReading, ...] = ()


def measure(
    items: Sequence[ScoredItem], alarm: Alarm, threshold: float, seed: int, card_thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """The metrics of `items`, which hold both labels; None stands where there is nothing to tell apart.

    auroc and its interval (95%, 2,000 bootstrap draws of groups, or else of topics or items), accuracy at 0.5, brier
    and ece (bins of equal mass, 15 or fewer) are of scores. Recall is the share of bad items that is flagged, bad being
    the alarm's side: at the thresholds that flag 1% and 10% of these very benign items, at the probe's own, and at
    those that its card has for rates of false positives (`card_thresholds`), which other items chose. held_out_topic
    is the mean over topics, selectivity the AUROC less that of the controls.
    """
    labels, scores = _labels(items), np.array([item.score for item in items], dtype=np.float64)
    bins = bins_for(len(items))
    table = reliability(scores, labels, bins)
    area = auroc(scores, labels)
    controls = _controls(items)
    control = float(np.mean(controls)) if controls else None
    by_topic = _by(items, lambda item: item.topic, lambda item: item.held_out)
    held_out = {topic: found["auroc"] for topic, found in by_topic.items() if found["auroc"] is not None}
    return {
        "n_items": len(items),
        "n_label_1": int(labels.sum()),
        "auroc": area,
        "auroc_interval": _interval(items, seed),
        "accuracy": float(np.mean((scores >= 0.5) == (labels == 1))),
        "recall_at_fpr": {f"{rate:g}": asdict(recall_at(scores, labels, alarm, rate)) for rate in RATES},
        "at_threshold": _at_threshold(scores, labels, alarm, threshold),
        "at_card_thresholds": {
            rate: _at_threshold(scores, labels, alarm, chosen) for rate, chosen in card_thresholds.items()
        },
        "brier": brier(scores, labels),
        "ece": expected_calibration_error(table),
        "ece_bins": {"kind": "equal mass", "n": bins},
        "reliability": [asdict(row) for row in table],
        "control_auroc": control,
        "control_aurocs": controls,
        "selectivity": None if control is None else area - control,
        "text_baseline_auroc": _of_some(items, lambda item: item.baseline),
        "prompt_end_auroc": _of_some(items, lambda item: item.prompt_end),
        "held_out_topic": {"auroc": float(np.mean(list(held_out.values()))) if held_out else None, "topics": held_out},
        "by_topic": _by(items, lambda item: item.topic, lambda item: item.score),
        "by_bucket": _by_bucket(items, seed),
    }


def _labels(items: Sequence[ScoredItem]) -> Labels:
    return np.array([item.label for item in items], dtype=np.int64)


def _interval(items: Sequence[ScoredItem], seed: int) -> dict[str, Any] | None:
    """The AUROC's interval, with what was drawn; None where there is none (see `auroc_interval`)."""
    groups, topics = [item.group for item in items], [item.topic for item in items]
    unit, of_item = clusters(groups, topics, [item.text for item in items])
    scores = np.array([item.score for item in items], dtype=np.float64)
    found = auroc_interval(scores, _labels(items), unit, of_item, seed)
    return None if found is None else asdict(found)


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
    """Numbers of items, and AUROC, within each group that `key` names, in order of name."""
    names = sorted({name for item in items if (name := key(item)) is not None})
    groups = {name: [item for item in items if key(item) == name] for name in names}
    return {
        name: {"n": len(group), "n_label_1": sum(item.label for item in group), "auroc": _of_some(group, value)}
        for name, group in groups.items()
    }


def _by_bucket(items: Sequence[ScoredItem], seed: int) -> dict[str, dict[str, Any]]:
    """As `_by`, of scores; with the interval, since a bucket of rare items may be small."""
    found = _by(items, lambda item: item.bucket, lambda item: item.score)
    for name, row in found.items():
        mine = [item for item in items if item.bucket == name]
        row["auroc_interval"] = None if row["auroc"] is None else _interval(mine, seed)
    return found
