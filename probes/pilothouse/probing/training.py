"""Training: labelled items in, a calibrated probe with its measurements out. The same seed gives the same probe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.probing.activation_cache import ActivationCache
from pilothouse.probing.activations import ItemReader, Token, aggregated, readout
from pilothouse.probing.aggregation import Aggregate, Alarm, Float64
from pilothouse.probing.calibration import CalibrationKind, calibrate, fit_calibration
from pilothouse.probing.controls import N_CONTROLS, shuffled_controls
from pilothouse.probing.fitting import Fitter, Method, Samples
from pilothouse.probing.metrics import Labels, auroc
from pilothouse.probing.probe import Probe
from pilothouse.probing.progress import Progress, counter
from pilothouse.probing.splits import Indices, Splits, split_items
from pilothouse.probing.statements import LabelledItem, digest_items
from pilothouse.probing.thresholds import check_supported, threshold_at, threshold_table

DEFAULT_THRESHOLD = 0.5
HISTOGRAM_BINS = 20


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
    token: Literal["last", "mean"] = "last",
    labels: Literal["sequence", "token"] = "sequence",
    aggregate: Aggregate = "last",
    calibration: CalibrationKind = "platt",
    seed: int = 0,
    threshold: float | None = None,
    fpr: float | None = None,
    cache: ActivationCache | None = None,
    progress: Progress | None = None,
) -> Probe:
    """A probe for `label` (what label 1 means) on the stream at `layers`, concatenated when there are several.

    layers None tries every site and keeps the one with the best AUROC on the `select` split. The direction is fitted
    on the `train` split, on standardised activations at `token` of each item (at the prompt's end when that is what
    the probe will aggregate) or, with labels "token", at each token that the items' spans label. All else goes by item
    with the aggregation used online: the choice of layer, the `calibration` on the `calibrate` split and the metrics,
    which are of the `eval` split. threshold is a score, 0.5 when None; or `fpr` chooses the one that flags this share
    of the benign items of the `calibrate` split. What is read is kept in `cache`, from which a second run goes on.
    ArtefactError when the items cannot make a probe: one label missing, a layer without a site, nothing learnt.
    """
    check_name(name)
    _check_options(threshold, fpr, labels, aggregate)
    splits = split_items(items, seed, choosing=layers is None)
    chosen = _check_layers(source, layers)
    n_tried = 0 if layers is not None else len(chosen)
    advance = counter(progress, _steps(splits, n_tried))
    position: Token = "spans" if labels == "token" else "prompt_end" if aggregate == "prompt_end" else token
    run = _Run(items, splits, ItemReader(source, advance, cache), Fitter(method, advance, cache), position)
    if fpr is not None:
        check_supported(run.labels(splits.calibrate), alarm, fpr)
    training = run.samples(splits.train, chosen, "train")
    template = Probe(name, label, alarm, aggregate, DEFAULT_THRESHOLD, weights={}, model=source.shape.model)
    sweep = _sweep(run, template, training) if n_tried else {}
    if sweep:
        training = training.at([max(sweep, key=lambda layer: (sweep[layer], -layer))])
    probe, logits = _calibrated(run, template, training, calibration)
    provenance: dict[str, Any] = {
        "method": method,
        "layers": list(probe.weights),
        "token": position,
        "labels": labels,
        "seed": seed,
        "sweep": {str(layer): value for layer, value in sweep.items()},
        "data": digest_items(items),
    }
    scores, truth = calibrate(probe.calibration, logits), run.labels(splits.calibrate)
    if fpr is not None:
        threshold = threshold_at(scores, truth, alarm, fpr)
        provenance["threshold_fpr"] = fpr
    if threshold is not None:
        probe = replace(probe, threshold=threshold)
    measured = _measured(run, probe, training, seed)
    measured["metrics"]["thresholds"] = threshold_table(scores, truth, alarm)
    probe = replace(probe, card={**provenance, **measured})
    return replace(probe, card=probe.full_card)


def _check_options(threshold: float | None, fpr: float | None, labels: str, aggregate: Aggregate) -> None:
    if threshold is not None and fpr is not None:
        raise ArtefactError("a threshold is either given or chosen by a rate of false positives, not both")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ArtefactError(f"a threshold is a score between 0 and 1, not {threshold}")
    if labels == "token" and aggregate == "prompt_end":
        raise ArtefactError("labels by token are of the tokens that a probe of the prompt's end does not read")


def _check_layers(source: ActivationSource, layers: Sequence[int] | None) -> tuple[int, ...]:
    chosen = tuple(sorted(set(source.shape.sites if layers is None else layers)))
    if not chosen:
        raise ArtefactError("no layers were chosen")
    if missing := sorted(set(chosen) - set(source.shape.sites)):
        raise ArtefactError(f"layer {missing[0]} has no site in this model")
    return chosen


def _steps(splits: Splits, n_tried: int) -> int:
    """Items read, those that calibrate twice, and directions fitted: the layers tried, the probe's, the controls'."""
    read = len(splits.train) + 2 * len(splits.calibrate) + len(splits.eval) + (len(splits.select) if n_tried else 0)
    return read + n_tried + 1 + N_CONTROLS


def _sweep(run: _Run, template: Probe, training: Samples) -> dict[int, float]:
    """AUROC on the `select` split of a probe at each layer alone."""
    alone = [replace(template, **run.fitter.fit(training.at([layer]))) for layer in training.features]
    found = run.reader.stats(run.part(run.splits.select), alone)
    truth = run.labels(run.splits.select)
    logits = (aggregated(probe, stats) for probe, stats in zip(alone, found, strict=True))
    return dict(zip(training.features, (auroc(of_layer, truth) for of_layer in logits), strict=True))


def _calibrated(run: _Run, template: Probe, training: Samples, kind: CalibrationKind) -> tuple[Probe, Float64]:
    """The probe with both its calibrations, and its logits of the `calibrate` split."""
    rows = run.splits.calibrate
    held_out = run.samples(rows, list(training.features), "calibrate")
    probe = replace(template, **run.fitter.fit(training, scale_on=held_out))
    at_token = probe.logits(readout(held_out.features, probe.direction.layers))
    logits = run.logits(probe, rows)
    calibrated = replace(
        probe,
        calibration=fit_calibration(kind, logits, run.labels(rows)),
        token_calibration=fit_calibration(kind, at_token, held_out.labels),
    )
    return calibrated, logits


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
