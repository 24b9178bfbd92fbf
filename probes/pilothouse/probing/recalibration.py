"""A new calibration and threshold for a probe that serves, from what was found of the responses that it scored.

The direction, and with it the order of scores, stays: labels tell what a logit means in live traffic, which no split of
a training set did. How much better the proposal is, is judged on responses that had no part in it (cross-validation).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.aggregation import Alarm, Float64
from pilothouse.probing.calibration import (
    AnyCalibration,
    CalibrationKind,
    Isotonic,
    Platt,
    calibrate,
    fit_calibration,
    logit_at,
)
from pilothouse.probing.comparison import Compared, Judged, compare, log_losses
from pilothouse.probing.metrics import Labels, auroc
from pilothouse.probing.probe import MEASURED, Probe
from pilothouse.probing.thresholds import check_supported, cut_at, threshold_table
from pilothouse.probing.verdicts import LabelledScore, Verdicts, settle

Kind = Literal["platt", "isotonic", "auto"]
KINDS: tuple[CalibrationKind, ...] = get_args(CalibrationKind)
FOLDS = 5
MIN_LABELS = 50
_WHERE = "among the labelled choices, of which there are"


@dataclass(frozen=True)
class Proposal:
    """A probe and what is proposed in its place, both judged on the same verdicts.

    kind: of the calibration, chosen where `auto` was asked for; before, after [n]: scores and flags, those after by
    calibrations that did not see the response; notes: what was left out or cannot be said.
    """

    old: Probe
    new: Probe
    kind: CalibrationKind
    verdicts: Verdicts
    before: Judged
    after: Judged
    compared: Mapping[str, Compared]
    notes: tuple[str, ...]

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, the raw choices last."""
        columns = zip(
            self.verdicts.response_ids,
            self.verdicts.statistics.tolist(),
            self.verdicts.values.tolist(),
            self.before.scores.tolist(),
            self.before.flagged.tolist(),
            self.after.scores.tolist(),
            self.after.flagged.tolist(),
            strict=True,
        )
        keys = ("response_id", "statistic", "value", "score", "flagged", "score_after", "flagged_after")
        return {
            "probe": self.old.name,
            "version": {"before": self.old.version, "after": self.new.version},
            "threshold": {"before": self.old.threshold, "after": self.new.threshold},
            "kind": self.kind,
            "recalibrated_from": self.new.card["recalibrated_from"],
            "measures": {name: asdict(found) for name, found in self.compared.items()},
            "notes": list(self.notes),
            "choices": [dict(zip(keys, row, strict=True)) for row in columns],
        }


@dataclass(frozen=True)
class _Rule:
    """How the threshold is found: a score, or the share of benign choices that may be flagged, as training had it."""

    threshold: float
    fpr: float | None

    def threshold_for(self, scores: Float64, labels: Labels, alarm: Alarm) -> float:
        return self.threshold if self.fpr is None else cut_at(scores, labels, alarm, self.fpr)


def recalibrate(
    probe: Probe,
    labels: Iterable[LabelledScore],
    *,
    kind: Kind = "auto",
    min_labels: int = MIN_LABELS,
    threshold: float | None = None,
    fpr: float | None = None,
    since: float | None = None,
    sources: Sequence[str] = (),
    seed: int = 0,
) -> Proposal:
    """`probe` with the calibration of its choices fitted to the labels of its present version, and a threshold.

    The threshold is found as training found it: at the rate of false positives that the card has (`threshold_fpr`), or
    else the score stays, and means that probability by the new calibration; `threshold` or `fpr` say otherwise. Kind
    `auto` is the one with the lower log loss on held-out folds. Which labels count, see `settle`. The calibration of
    single tokens stays. The card's metrics are those of the labels; its reference histogram has the same counts between
    edges that are moved along with the scores, so that drift measures what it did.
    ArtefactError for fewer than `min_labels` choices, or than five responses of either verdict, for a rate that they
    cannot support, and when labels do not rise with logits.
    """
    rule = _rule(probe, threshold, fpr)
    verdicts = settle(labels, probe.version, since=since, sources=sources)
    _check_enough(probe, verdicts, min_labels)
    x, y = verdicts.statistics, verdicts.values
    if rule.fpr is not None:
        check_supported(y, probe.alarm, rule.fpr, _WHERE)
    chosen, calibration = _fitted(kind, x, y, verdicts.of_item, seed)
    scores = calibrate(probe.calibration, x)
    bad = y == (1 if probe.alarm == "high" else 0)
    before = Judged(scores, _past(scores, probe.threshold, probe.alarm), y, bad)
    after = _cross_validated(probe.alarm, kind, rule, verdicts, bad, seed)
    compared = compare(before, after, verdicts.of_item, seed)
    new = replace(
        probe, calibration=calibration, threshold=rule.threshold_for(calibrate(calibration, x), y, probe.alarm)
    )
    card = {**_kept(probe, rule), "recalibrated_from": _origin(probe, verdicts, chosen)}
    new = replace(new, card={**card, **_measured(probe, new, verdicts, compared)})
    new = replace(new, card=new.full_card)
    return Proposal(
        probe, new, chosen, verdicts, before, after, compared, tuple(_notes(probe, new, verdicts, compared))
    )


def _check_enough(probe: Probe, verdicts: Verdicts, min_labels: int) -> None:
    n = len(verdicts.values)
    counts = {value: verdicts.responses_of(value) for value in (0, 1)}
    missing = "; ".join(verdicts.left_out)
    missing = f" ({missing})" if missing else ""
    if n < min_labels:
        raise ArtefactError(
            f"there are {n} labelled choices of version {probe.version} of probe {probe.name!r}, and recalibration "
            f"needs {min_labels}{missing}"
        )
    if min(counts.values()) < FOLDS:
        raise ArtefactError(
            f"recalibration needs {FOLDS} labelled responses of either kind: {counts[1]} say that {probe.label!r} "
            f"holds, {counts[0]} that it does not{missing}"
        )


def _rule(probe: Probe, threshold: float | None, fpr: float | None) -> _Rule:
    if threshold is not None and fpr is not None:
        raise ArtefactError("a threshold is either given or chosen by a rate of false positives, not both")
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise ArtefactError(f"a threshold is a score between 0 and 1, not {threshold}")
        return _Rule(threshold, None)
    trained_at = probe.card.get("threshold_fpr")
    if fpr is None and isinstance(trained_at, float):
        fpr = trained_at
    return _Rule(probe.threshold, fpr)


def _fitted(kind: Kind, x: Float64, y: Labels, of_item: Labels, seed: int) -> tuple[CalibrationKind, Platt | Isotonic]:
    """A calibration of this kind, or of the kind that is likelier on held-out fifths of these very choices."""
    if kind != "auto":
        return kind, fit_calibration(kind, x, y)
    folds = _folds(of_item, y, seed)
    losses = {candidate: _held_out_loss(candidate, x, y, folds) for candidate in KINDS}
    best = min(losses, key=lambda candidate: losses[candidate])
    return best, fit_calibration(best, x, y)


def _held_out_loss(kind: CalibrationKind, x: Float64, y: Labels, folds: Labels) -> float:
    scores = np.empty(len(x))
    for fold in range(FOLDS):
        held_out = folds == fold
        try:
            fitted = fit_calibration(kind, x[~held_out], y[~held_out])
        except ArtefactError:
            return np.inf
        scores[held_out] = calibrate(fitted, x[held_out])
    return float(log_losses(scores, y).mean())


def _cross_validated(
    alarm: Alarm, kind: Kind, rule: _Rule, verdicts: Verdicts, bad: npt.NDArray[np.bool_], seed: int
) -> Judged:
    """Every choice as judged by a calibration and a threshold that the other responses chose, the kind included."""
    x, y, of_item = verdicts.statistics, verdicts.values, verdicts.of_item
    scores, flagged = np.empty(len(x)), np.empty(len(x), dtype=np.bool_)
    folds = _folds(of_item, y, seed)
    for fold in range(FOLDS):
        held_out, seen = folds == fold, folds != fold
        _, calibration = _fitted(kind, x[seen], y[seen], of_item[seen], seed)
        threshold = rule.threshold_for(calibrate(calibration, x[seen]), y[seen], alarm)
        scores[held_out] = calibrate(calibration, x[held_out])
        flagged[held_out] = _past(scores[held_out], threshold, alarm)
    return Judged(scores, flagged, y, bad)


def _folds(of_item: Labels, y: Labels, seed: int) -> Labels:
    """The fold of each choice: whole responses, drawn within each verdict."""
    rng = np.random.default_rng(seed)
    units, of_item = np.unique(of_item, return_inverse=True)
    verdict = np.zeros(len(units), dtype=np.int64)
    np.maximum.at(verdict, of_item, y)
    fold = np.empty(len(units), dtype=np.int64)
    for value in (0, 1):
        members = rng.permutation(np.flatnonzero(verdict == value))
        fold[members] = np.arange(len(members)) % FOLDS
    return fold[of_item]


def _past(scores: Float64, threshold: float, alarm: Alarm) -> npt.NDArray[np.bool_]:
    return np.asarray(scores > threshold if alarm == "high" else scores < threshold)


def _kept(probe: Probe, rule: _Rule) -> dict[str, Any]:
    """What stays of the card, with the rule of its threshold."""
    kept = {key: value for key, value in probe.full_card.items() if key not in {*MEASURED, "threshold_fpr"}}
    return kept if rule.fpr is None else {**kept, "threshold_fpr": rule.fpr}


def _origin(probe: Probe, verdicts: Verdicts, kind: CalibrationKind) -> dict[str, Any]:
    """For the card: what was recalibrated, by which labels."""
    return {
        "version": probe.version,
        "threshold": probe.threshold,
        "calibration": probe.full_card["calibration"],
        "kind": kind,
        "n_choices": len(verdicts.values),
        "n_holds": int(verdicts.values.sum()),
        "sources": dict(verdicts.sources),
        "first": verdicts.first,
        "last": verdicts.last,
    }


def _measured(old: Probe, new: Probe, verdicts: Verdicts, compared: Mapping[str, Compared]) -> dict[str, Any]:
    """For the card: what the labels say, of held-out responses where calibration or threshold matter, and where the
    scores of the reference are now."""
    scores = calibrate(new.calibration, verdicts.statistics)
    metrics = {
        "auroc": auroc(verdicts.statistics, verdicts.values),
        **{name: found.after.value for name, found in compared.items()},
        "n": {"choices": len(verdicts.values), "responses": len(set(verdicts.response_ids))},
        "thresholds": threshold_table(scores, verdicts.values, new.alarm, _WHERE),
        "measured_on": {"labels_of": old.version, "first": verdicts.first, "last": verdicts.last},
    }
    histogram = _moved(old.card.get("reference_histogram"), old.calibration, new.calibration)
    return {"metrics": metrics} if histogram is None else {"metrics": metrics, "reference_histogram": histogram}


def _moved(histogram: Any, old: AnyCalibration | None, new: AnyCalibration | None) -> dict[str, Any] | None:
    """A histogram of scores with its edges at the new scores of the logits at which the old ones were; None when it
    cannot be read. Its ends, beyond which no score can lie, stay.

    A score lies between two edges exactly when its logit lies between theirs, so the counts stay. Bins that become one
    point, where the new calibration is flat, are counted in the one above them, as that point is; where it is flat in
    the middle, a bin that reaches into the flat part still counts what is now on its upper edge.
    """
    try:
        edges = np.asarray(histogram["edges"], dtype=np.float64)
        counts = [int(count) for count in histogram["counts"]]
    except (KeyError, TypeError, ValueError):
        return None
    if edges.ndim != 1 or len(edges) != len(counts) + 1 or not len(counts) or not (np.diff(edges) > 0).all():
        return None
    inner = [logit_at(old, edge, above=False) for edge in edges[1:-1]]
    lowest, *moved, highest = calibrate(new, [-np.inf, *inner, np.inf]).tolist()
    kept, sums = [lowest], [0]
    for edge, count in zip([*moved, highest], counts, strict=True):
        sums[-1] += count
        if kept[-1] < edge < highest:
            kept.append(edge)
            sums.append(0)
    return {"edges": [float(edges[0]), *kept[1:], float(edges[-1])], "counts": sums}


def _notes(old: Probe, new: Probe, verdicts: Verdicts, compared: Mapping[str, Compared]) -> list[str]:
    notes = verdicts.left_out
    found = compared["log_loss"].difference.interval
    if found is None or found.high >= 0:
        notes.append("the log loss of held-out responses is not shown to fall: the present calibration may do as well")
    if old.card.get("reference_histogram") is not None and "reference_histogram" not in new.card:
        notes.append("the card's reference histogram cannot be read and was dropped: there is nothing to drift from")
    return notes
