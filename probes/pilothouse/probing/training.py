"""Training: labelled items in, a calibrated probe with its measurements out. The same seed gives the same probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.probing.activation_cache import ActivationCache
from pilothouse.probing.activations import ItemReader, Token, aggregated, readout
from pilothouse.probing.aggregation import Aggregate, Alarm, Float64
from pilothouse.probing.calibration import CalibrationKind, calibrate, fit_calibration, fit_platt
from pilothouse.probing.controls import N_CONTROLS, shuffled_controls
from pilothouse.probing.fitting import Fitter, Method, Samples
from pilothouse.probing.metrics import Labels, auroc
from pilothouse.probing.probe import Probe
from pilothouse.probing.progress import Progress, counter
from pilothouse.probing.splits import Indices, SplitBy, Splits, split_items
from pilothouse.probing.statements import LabelledItem, digest_items
from pilothouse.probing.thresholds import check_supported, threshold_at, threshold_table

DEFAULT_THRESHOLD = 0.5
HISTOGRAM_BINS = 20
ONLINE_ROUNDS = 4
"""How often a probe that is trained on its worst tokens looks for them anew; the first fit is on the mean of all."""


@dataclass(frozen=True)
class _Run:
    """One training: the items and who is for what, and what reads and fits them."""

    items: Sequence[LabelledItem]
    splits: Splits
    reader: ItemReader
    fitter: Fitter
    token: Token

    def part(self, rows: Indices) -> list[LabelledItem]:
        return [self.items[i] for i in rows]

    def labels(self, rows: Indices) -> Labels:
        return np.array([self.items[i].label for i in rows], dtype=np.int64)

    def samples(self, rows: Indices, layers: Sequence[int], split: str) -> Samples:
        samples = self.reader.samples(self.part(rows), layers, self.token)
        if not samples.has_both_labels:
            raise ArtefactError(f"the {split} split needs tokens of both labels that a server would score")
        return samples

    def held_out(self, probe: Probe, rows: Indices) -> Samples:
        """Rows of the kind that `probe` was fitted on."""
        if self.token == "online":
            return self.reader.online(self.part(rows), [probe])
        return self.samples(rows, list(probe.weights), "calibrate")

    def logits(self, probe: Probe, rows: Indices) -> Float64:
        """Each item's logit, aggregated as it will be online."""
        return aggregated(probe, self.reader.stats(self.part(rows), [probe])[0])


def train_probe(
    source: ActivationSource,
    items: Sequence[LabelledItem],
    *,
    name: str,
    label: str,
    alarm: Alarm,
    layers: Sequence[int] | None,
    method: Method,
    token: Literal["last", "mean", "online"] | None = None,
    labels: Literal["sequence", "token"] = "sequence",
    aggregate: Aggregate | None = None,
    calibration: CalibrationKind = "platt",
    seed: int = 0,
    split_by: SplitBy = "group",
    threshold: float | None = None,
    fpr: float | None = None,
    cache: ActivationCache | None = None,
    progress: Progress | None = None,
) -> Probe:
    """A probe for `label` (what label 1 means) on the stream at `layers`, concatenated when there are several.

    layers None tries every site and keeps the one with the best AUROC on the `select` split. aggregate None is the
    worst of the moving average for chats with answers, and the last token for texts, whose end alone tells. The
    direction is fitted on the `train` split, on standardised activations at `token` of each item: online, the tokens
    that the aggregate rests on, which a fit on the mean of all finds first and later ones find better; None is online
    for logistic regression and the mean for differences of means, except that both fit on the token, or the mean, that
    the aggregate is. With labels "token" they are those that the items' spans label. All else goes by item with the
    aggregation used online: the choice of layer, the `calibration` on the `calibrate` split and the metrics, which are
    of the `eval` split.
    threshold is a score, 0.5 when None; or `fpr` chooses the one that flags this share of the benign items of the
    `calibrate` split. What is read is kept in `cache`, from which a second run goes on. ArtefactError when the items
    cannot make a probe: one label missing, a layer without a site, nothing learnt.
    """
    check_name(name)
    aggregate = aggregate or default_aggregate(items)
    _check_options(threshold, fpr, labels, aggregate)
    splits = split_items(items, seed, choosing=layers is None, by=split_by)
    chosen = _check_layers(source, layers)
    groups = [chosen] if layers is not None else [(layer,) for layer in chosen]
    position = _position(token, labels, aggregate, method)
    rounds = ONLINE_ROUNDS if position == "online" else 0
    advance = counter(progress, _steps(splits, len(groups), rounds, choosing=layers is None))
    run = _Run(items, splits, ItemReader(source, advance, cache), Fitter(method, advance, cache), position)
    if fpr is not None:
        check_supported(run.labels(splits.calibrate), alarm, fpr)
    template = Probe(name, label, alarm, aggregate, DEFAULT_THRESHOLD, weights={}, model=source.shape.model)
    training, probes = _learn(run, template, groups, rounds)
    sweep = _sweep(run, probes) if layers is None else {}
    probe = _best(probes, sweep)
    probe, logits = _calibrated(run, probe, calibration)
    scores, truth = calibrate(probe.calibration, logits), run.labels(splits.calibrate)
    if fpr is not None:
        threshold = threshold_at(scores, truth, alarm, fpr)
    if threshold is not None:
        probe = replace(probe, threshold=threshold)
    measured = _measured(run, probe, training.at(list(probe.weights)), seed)
    measured["metrics"]["thresholds"] = threshold_table(scores, truth, alarm)
    provenance: dict[str, Any] = {
        "method": method,
        "layers": list(probe.weights),
        "token": position,
        "labels": labels,
        "seed": seed,
        "split_by": split_by,
        "sweep": {str(layer): value for layer, value in sweep.items()},
        "data": digest_items(items),
    }
    if fpr is not None:
        provenance["threshold_fpr"] = fpr
    probe = replace(probe, card={**provenance, **measured})
    return replace(probe, card=probe.full_card)


def default_aggregate(items: Sequence[LabelledItem]) -> Aggregate:
    """What is watched online when nothing else is asked for: an answer at its worst, a statement at its end."""
    return "worst_ema" if any(item.answered for item in items) else "last"


def _check_options(threshold: float | None, fpr: float | None, labels: str, aggregate: Aggregate) -> None:
    if threshold is not None and fpr is not None:
        raise ArtefactError("a threshold is either given or chosen by a rate of false positives, not both")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ArtefactError(f"a threshold is a score between 0 and 1, not {threshold}")
    if labels == "token" and aggregate == "prompt_end":
        raise ArtefactError("labels by token are of the tokens that a probe of the prompt's end does not read")


def _position(
    token: Literal["last", "mean", "online"] | None, labels: str, aggregate: Aggregate, method: Method
) -> Token:
    """The tokens to fit on. What an aggregate of one token, or of all alike, rests on is known before any fit.

    A difference of means that may choose its tokens chases its own noise and goes back and forth from round to round,
    so that it is fitted on the mean of all unless asked otherwise; logistic regression settles.
    """
    if labels == "token":
        return "spans"
    if aggregate == "prompt_end":
        return "prompt_end"
    if token in (None, "online") and aggregate in ("last", "mean"):
        return aggregate
    return token or ("online" if method == "logistic" else "mean")


def _check_layers(source: ActivationSource, layers: Sequence[int] | None) -> tuple[int, ...]:
    chosen = tuple(sorted(set(source.shape.sites if layers is None else layers)))
    if not chosen:
        raise ArtefactError("no layers were chosen")
    if missing := sorted(set(chosen) - set(source.shape.sites)):
        raise ArtefactError(f"layer {missing[0]} has no site in this model")
    return chosen


def _steps(splits: Splits, n_probes: int, rounds: int, choosing: bool) -> int:
    """Items read (those that train once a round more, those that calibrate twice) and directions fitted, controls'
    included."""
    read = (1 + rounds) * len(splits.train) + 2 * len(splits.calibrate) + len(splits.eval)
    return read + (len(splits.select) if choosing else 0) + (1 + rounds) * n_probes + N_CONTROLS


def _learn(run: _Run, template: Probe, groups: Sequence[tuple[int, ...]], rounds: int) -> tuple[Samples, list[Probe]]:
    """Rows of the train split, and a probe fitted on them for each group of layers, no layer being in two groups."""
    rows = run.splits.train
    samples = run.samples(rows, [layer for group in groups for layer in group], "train")
    probes = [replace(template, **run.fitter.fit(samples.at(group))) for group in groups]
    for _ in range(rounds):
        samples = run.reader.online(run.part(rows), probes)
        probes = [replace(template, **run.fitter.fit(samples.at(group))) for group in groups]
    return samples, probes


def _sweep(run: _Run, alone: Sequence[Probe]) -> dict[int, float]:
    """By layer, the AUROC on the `select` split of the probe at this layer alone."""
    found = run.reader.stats(run.part(run.splits.select), alone)
    truth = run.labels(run.splits.select)
    areas = (auroc(aggregated(probe, stats), truth) for probe, stats in zip(alone, found, strict=True))
    return {next(iter(probe.weights)): area for probe, area in zip(alone, areas, strict=True)}


def _best(probes: Sequence[Probe], sweep: Mapping[int, float]) -> Probe:
    """The probe whose layer has the highest AUROC, the lower layer of two alike; without a sweep the only one."""
    if not sweep:
        return probes[0]
    best = max(sweep, key=lambda layer: (sweep[layer], -layer))
    return next(probe for probe in probes if best in probe.weights)


def _calibrated(run: _Run, probe: Probe, kind: CalibrationKind) -> tuple[Probe, Float64]:
    """The probe with its scale and both its calibrations, and its logits of the `calibrate` split."""
    rows = run.splits.calibrate
    held_out = run.held_out(probe, rows)
    if run.fitter.method != "logistic":
        probe = _scaled(probe, held_out)
    at_token = probe.logits(readout(held_out.features, probe.direction.layers))
    logits = run.logits(probe, rows)
    calibrated = replace(
        probe,
        calibration=fit_calibration(kind, logits, run.labels(rows)),
        token_calibration=fit_calibration(kind, at_token, held_out.labels),
    )
    return calibrated, logits


def _scaled(probe: Probe, held_out: Samples) -> Probe:
    """`probe`, whose difference of means has no scale or bias of its own, with those that make logits of its readouts
    of the held-out rows."""
    platt = fit_platt(probe.logits(readout(held_out.features, probe.direction.layers)), held_out.labels)
    weights = {layer: (platt.a * row.astype(np.float64)).astype(np.float32) for layer, row in probe.weights.items()}
    return replace(probe, weights=weights, bias=float(np.float32(platt.a * probe.bias + platt.b)))


def _measured(run: _Run, probe: Probe, training: Samples, seed: int) -> dict[str, Any]:
    """What the card says of the `eval` split, in one reading: the probe's scores beside those of its controls."""
    splits, judged = run.splits, run.part(run.splits.eval)
    controls = shuffled_controls(run.fitter, probe, training, run.part(splits.train), judged, seed)
    stats, *of_controls = run.reader.stats(judged, [probe, *(control.probe for control in controls)])
    truth = run.labels(splits.eval)
    scores = calibrate(probe.calibration, aggregated(probe, stats))
    found = [
        auroc(aggregated(control.probe, of_control), control.labels)
        for control, of_control in zip(controls, of_controls, strict=True)
    ]
    counts, edges = np.histogram(scores, bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return {
        "metrics": {
            "auroc": auroc(scores, truth),
            "accuracy": float(np.mean((scores >= 0.5) == (truth == 1))),
            "control_auroc": float(np.mean(found)) if found else None,
            "n": splits.sizes,
        },
        "reference_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
