"""Training: labelled items in, a calibrated probe with its measurements out. The same seed gives the same probe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import Float32
from pilothouse.probing.activations import ItemReader, Token, readout
from pilothouse.probing.aggregation import Aggregate, Alarm, Float64
from pilothouse.probing.calibration import calibrate, fit_platt
from pilothouse.probing.fitting import Labels, LinearFit, Method, Standardiser, auroc, fit_direction
from pilothouse.probing.probe import Probe
from pilothouse.probing.splits import Splits, split_items
from pilothouse.probing.statements import LabelledItem

DEFAULT_THRESHOLD = 0.5
HISTOGRAM_BINS = 20
N_CONTROLS = 5


@dataclass(frozen=True)
class _Material:
    """The items' activations and labels, and who is for what."""

    items: Sequence[LabelledItem]
    features: Mapping[int, Float32]
    labels: Labels
    splits: Splits
    method: Method

    def at(self, layers: Sequence[int]) -> "_Material":
        return replace(self, features={layer: self.features[layer] for layer in layers})

    def fit(self, rows: npt.NDArray[np.int64]) -> tuple[Standardiser, LinearFit]:
        """Fit the method on the items `rows`."""
        standardiser = Standardiser.fit(self.features, rows)
        topics = [self.items[i].topic for i in rows]
        return standardiser, fit_direction(
            self.method, standardiser.apply(self.features, rows), self.labels[rows], topics
        )

    def judge(self, fitted: tuple[Standardiser, LinearFit], rows: npt.NDArray[np.int64]) -> float:
        """AUROC of a fit on the items `rows`, at the training token."""
        standardiser, fit = fitted
        return auroc(fit.project(standardiser.apply(self.features, rows)), self.labels[rows])


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
    aggregate: Aggregate = "last",
    seed: int = 0,
    threshold: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """A probe for `label` (what label 1 means) on the stream at `layers`, concatenated when there are several.

    layers None tries every site and keeps the one with the best AUROC on the `select` split. The direction is fitted
    on standardised activations at `token` (at the prompt's end when that is what the probe will aggregate), the
    calibration after aggregation on the `calibrate` split, the metrics are of the `eval` split. threshold is a score,
    0.5 when None. `progress` is called with items read and to read; the items that calibrate and judge are read twice.
    ArtefactError when the items cannot make a probe: one label missing, a layer without a site, nothing learnt.
    """
    check_name(name)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ArtefactError(f"a threshold is a score between 0 and 1, not {threshold}")
    splits = split_items(items, seed)
    reader = ItemReader(source, _counter(progress, len(items) + len(splits.calibrate) + len(splits.eval)))
    position: Token = "prompt_end" if aggregate == "prompt_end" else token
    features = reader.features(items, _check_layers(source, layers), position)
    labels = np.array([item.label for item in items], dtype=np.int64)
    material = _Material(items, features, labels, splits, method)
    sweep = _sweep(material) if layers is None else {}
    if sweep:
        material = material.at([max(sweep, key=lambda layer: (sweep[layer], -layer))])
    probe = Probe(
        name=name,
        label=label,
        alarm=alarm,
        aggregate=aggregate,
        threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
        model=source.shape.model,
        **_fitted(material),
    )
    return _calibrated(
        probe,
        reader,
        material,
        {"token": position, "seed": seed, "sweep": {str(layer): sweep[layer] for layer in sweep}},
    )


def _check_layers(source: ActivationSource, layers: Sequence[int] | None) -> tuple[int, ...]:
    chosen = tuple(sorted(set(source.shape.sites if layers is None else layers)))
    if not chosen:
        raise ArtefactError("no layers were chosen")
    if missing := sorted(set(chosen) - set(source.shape.sites)):
        raise ArtefactError(f"layer {missing[0]} has no site in this model")
    return chosen


def _sweep(material: _Material) -> dict[int, float]:
    """AUROC on the `select` split of a probe at each layer alone."""
    found = {}
    for layer in material.features:
        alone = material.at([layer])
        found[layer] = alone.judge(alone.fit(alone.splits.fit), alone.splits.select)
    return found


def _fitted(material: _Material) -> dict[str, Any]:
    """Weights, bias, mean and std of a probe fitted on the training split."""
    standardiser, fit = material.fit(material.splits.train)
    if material.method == "mass_mean":
        # A difference of means has no scale: held-out items give it the one on which it is a logit.
        rows = material.splits.calibrate
        platt = fit_platt(fit.project(standardiser.apply(material.features, rows)), material.labels[rows])
        fit = LinearFit(platt.a * fit.weight, platt.b)
    parts = np.split(fit.weight.astype(np.float32), len(standardiser.mean))
    return {
        "weights": dict(zip(standardiser.mean, parts, strict=True)),
        "bias": float(np.float32(fit.bias)),
        "mean": standardiser.mean,
        "std": standardiser.std,
    }


def _calibrated(probe: Probe, reader: ItemReader, material: _Material, provenance: dict[str, Any]) -> Probe:
    """`probe` with its calibrations, and a card with what it was made of and how well it does on held-out items."""
    splits, labels = material.splits, material.labels
    aggregated = _aggregated_logits(probe, reader, [material.items[i] for i in splits.calibrate])
    at_token = readout(material.features, probe.direction.layers)[splits.calibrate]
    calibration = fit_platt(aggregated, labels[splits.calibrate])
    token_calibration = fit_platt(probe.logits(at_token), labels[splits.calibrate])
    logits = _aggregated_logits(probe, reader, [material.items[i] for i in splits.eval])
    scores = calibrate(calibration, logits)
    counts, edges = np.histogram(scores, bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    card = {
        "method": material.method,
        "layers": list(probe.weights),
        **provenance,
        "metrics": _metrics(material, scores, provenance["seed"]),
        "reference_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
    probe = replace(probe, calibration=calibration, token_calibration=token_calibration, card=card)
    return replace(probe, card=probe.full_card)


def _aggregated_logits(probe: Probe, reader: ItemReader, items: Sequence[LabelledItem]) -> Float64:
    """Each item's logit after aggregation [items]; ArtefactError where the stream was not finite."""
    found = [getattr(stats, probe.aggregate) for stats in reader.stats(items, probe)]
    logits = np.array(found, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ArtefactError("the model's stream holds NaN or infinite numbers on these items")
    return logits


def _metrics(material: _Material, scores: Float64, seed: int) -> dict[str, Any]:
    """On the `eval` split: AUROC, accuracy at 0.5, and the AUROC of the same method on labels that mean nothing."""
    splits = material.splits
    truth = material.labels[splits.eval]
    return {
        "auroc": auroc(scores, truth),
        "accuracy": float(np.mean((scores >= 0.5) == (truth == 1))),
        "control_auroc": float(np.mean([_control(material, seed + i) for i in range(N_CONTROLS)])),
        "n": {split: len(getattr(splits, split)) for split in ("train", "select", "calibrate", "eval")},
    }


def _control(material: _Material, seed: int) -> float:
    """AUROC when labels are shuffled within each split: far above 0.5 shows a method that scores well on anything.

    The control task of Hewitt & Liang, Designing and Interpreting Probes with Control Tasks, 2019.
    """
    rng = np.random.default_rng(seed)
    shuffled = material.labels.copy()
    for rows in (material.splits.train, material.splits.eval):
        shuffled[rows] = rng.permutation(shuffled[rows])
    control = replace(material, labels=shuffled)
    return control.judge(control.fit(control.splits.train), control.splits.eval)


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    return advance
