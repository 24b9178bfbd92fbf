"""`probes eval`: a probe on items that did not train it, beside what it has to be held against."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.probing.activation_cache import ActivationCache
from pilothouse.probing.activations import ItemReader, Token, aggregated
from pilothouse.probing.aggregation import Alarm
from pilothouse.probing.calibration import calibrate
from pilothouse.probing.controls import N_CONTROLS, Control, held_out_topics, shuffled_controls, topic_folds
from pilothouse.probing.fitting import METHODS, Fitter
from pilothouse.probing.measures import ControlReading, ScoredItem, measure
from pilothouse.probing.probe import Probe
from pilothouse.probing.progress import Progress, counter
from pilothouse.probing.splits import check_disjoint, splits_of_training
from pilothouse.probing.statements import LabelledItem, digest_items
from pilothouse.probing.text_baseline import text_baseline

Part = Literal["eval", "all"]


@dataclass(frozen=True)
class Evaluation:
    """One probe on one part of one dataset, whose digest is `data`.

    card_thresholds: by rate of false positives, the thresholds that the card has; seed: of the bootstrap and the
    controls; notes: what is missing, and why.
    """

    probe: str
    version: str
    model: str
    label: str
    alarm: Alarm
    aggregate: str
    threshold: float
    card_thresholds: Mapping[str, float]
    data: str
    split: Part
    seed: int
    notes: tuple[str, ...]
    items: tuple[ScoredItem, ...]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Everything that is said of the probe, from the scored items alone; see `measure`."""
        return measure(self.items, self.alarm, self.threshold, self.seed, self.card_thresholds)

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, the raw items last."""
        everything = asdict(self)
        items = everything.pop("items")
        return {**everything, "metrics": self.metrics, "items": items}

    @property
    def card_metrics(self) -> dict[str, Any]:
        """The metrics and what they were measured on, for the key `metrics` of a card."""
        about = {"data": self.data, "split": self.split, "model": self.model, "seed": self.seed}
        return {**self.metrics, "measured_on": {**about, "notes": list(self.notes)}}


@dataclass(frozen=True)
class _Parts:
    """Who is judged, who can train a probe like this one, and all that are not judged."""

    judged: list[LabelledItem]
    ids: list[str]
    training: list[LabelledItem]
    rest: list[LabelledItem]


@dataclass(frozen=True)
class _Rivals:
    """What the probe is held against: controls on shuffled labels, and probes that have not seen some topics."""

    controls: Sequence[Control] = ()
    unseen: Sequence[tuple[set[str], Probe]] = ()

    @property
    def probes(self) -> list[Probe]:
        return [*(control.probe for control in self.controls), *(probe for _, probe in self.unseen)]


def evaluate_probe(
    source: ActivationSource,
    probe: Probe,
    items: Sequence[LabelledItem],
    *,
    split: Part = "eval",
    seed: int | None = None,
    cache: ActivationCache | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """`probe` on the `eval` split of `items`, or on all of them.

    Where no item names the eval split but the probe was trained on these very items, it is the one that training held
    back. All items that are not judged train a text-only baseline; those of the train split are read too, to fit by the
    probe's own method its controls: five on shuffled labels, and probes that never saw the topics that they judge.
    seed None is the one of the training. ArtefactError when the probe does not fit the model, the splits are not
    disjoint, or the judged items are all of one label.
    """
    probe.check_fits(source.shape)
    trained_by = probe.card.get("seed")
    seed = seed if seed is not None else trained_by if isinstance(trained_by, int) else 0
    parts = _divide(probe, items, split)
    no_rivals = _no_rivals(probe, parts)
    folds = [] if no_rivals else topic_folds(parts.training, parts.judged)
    steps = 0 if no_rivals else len(parts.training) + N_CONTROLS + len(folds)
    reader = ItemReader(source, counter(progress, steps + len(parts.judged)), cache)
    rivals = _Rivals() if no_rivals else _rivals(reader, probe, parts, folds, seed)
    if not no_rivals and not rivals.controls:
        no_rivals = "no shuffled-label control: too few labels among the training items, or all of one kind"
    return Evaluation(
        probe=probe.name,
        version=probe.version,
        model=source.shape.model,
        label=probe.label,
        alarm=probe.alarm,
        aggregate=probe.aggregate,
        threshold=probe.threshold,
        card_thresholds=_card_thresholds(probe),
        data=digest_items(items),
        split=split,
        seed=seed,
        notes=tuple(note for note in (no_rivals, _no_baseline(parts)) if note),
        items=_scored(reader, probe, parts, rivals, split),
    )


def _divide(probe: Probe, items: Sequence[LabelledItem], split: Part) -> _Parts:
    named = [i for i, item in enumerate(items) if item.split == "eval"]
    splits = splits_of_training(probe.card, items)
    if split == "all":
        judged, training = list(range(len(items))), []
    elif splits is not None:
        judged, training = splits.eval.tolist(), splits.train.tolist()
    elif named:
        check_disjoint(items)
        judged, training = named, [i for i, item in enumerate(items) if item.split in (None, "train")]
    else:
        raise ArtefactError(
            "no item is of the eval split, and the probe's card does not say that it was trained on these items: "
            'name their splits ("split": "eval"), or evaluate all of them'
        )
    if {items[i].label for i in judged} != {0, 1}:
        raise ArtefactError("the items to be judged are all of one label")
    apart = set(judged)
    return _Parts(
        judged=[items[i] for i in judged],
        ids=[items[i].id or str(i) for i in judged],
        training=[items[i] for i in training],
        rest=[item for i, item in enumerate(items) if i not in apart],
    )


def _card_thresholds(probe: Probe) -> dict[str, float]:
    metrics = probe.card.get("metrics")
    table = metrics.get("thresholds") if isinstance(metrics, dict) else None
    rows = table.items() if isinstance(table, dict) else ()
    found = {rate: row.get("threshold") for rate, row in rows if isinstance(row, dict)}
    return {rate: float(value) for rate, value in found.items() if isinstance(value, int | float)}


def _no_rivals(probe: Probe, parts: _Parts) -> str | None:
    """Why there are no controls, if so."""
    if {item.label for item in parts.training} != {0, 1}:
        return "no controls and no held-out topics: no training items of both labels beside those that are judged"
    if probe.card.get("method") not in METHODS or probe.card.get("token") not in get_args(Token):
        return "no controls and no held-out topics: the card does not say how the probe was trained"
    return None


def _no_baseline(parts: _Parts) -> str | None:
    """Why there is no text-only baseline, if so."""
    if {item.label for item in parts.rest} != {0, 1}:
        return "no text-only baseline: no items of both labels beside those that are judged"
    return None


def _rivals(reader: ItemReader, probe: Probe, parts: _Parts, folds: Sequence[set[str]], seed: int) -> _Rivals:
    """Fitted on rows like the probe's own: online, that is on the tokens that the probe itself rests on."""
    if probe.card["token"] == "online":
        samples = reader.online(parts.training, [probe])
    else:
        samples = reader.samples(parts.training, sorted(probe.weights), probe.card["token"])
    if not samples.has_both_labels:
        return _Rivals()
    fitter = Fitter(probe.card["method"], reader.advance, reader.cache)
    controls = shuffled_controls(fitter, probe, samples, parts.training, parts.judged, seed)
    return _Rivals(controls, held_out_topics(fitter, probe, samples, folds))


def _scored(reader: ItemReader, probe: Probe, parts: _Parts, rivals: _Rivals, split: Part) -> tuple[ScoredItem, ...]:
    """The judged items, read once for the probe and all its rivals."""
    stats, *of_rivals = reader.stats(parts.judged, [probe, *rivals.probes])
    logits = aggregated(probe, stats)
    scores = calibrate(probe.calibration, logits)
    others = [aggregated(rival, found) for rival, found in zip(rivals.probes, of_rivals, strict=True)]
    of_controls, of_unseen = others[: len(rivals.controls)], others[len(rivals.controls) :]
    baseline = None if _no_baseline(parts) else text_baseline(parts.rest, parts.judged)
    found = []
    for i, item in enumerate(parts.judged):
        unseen = [
            float(of_one[i])
            for (topics, _), of_one in zip(rivals.unseen, of_unseen, strict=True)
            if item.topic in topics
        ]
        controls = zip(rivals.controls, of_controls, strict=True)
        prompt_end = stats[i].prompt_end
        readable = item.answered and prompt_end is not None and np.isfinite(prompt_end)
        found.append(
            ScoredItem(
                id=parts.ids[i],
                split=split if split == "eval" else item.split or "train",
                topic=item.topic,
                bucket=item.bucket,
                group=item.group,
                label=item.label,
                text=item.transcript,
                logit=float(logits[i]),
                score=float(scores[i]),
                prompt_end=prompt_end if readable else None,
                baseline=None if baseline is None else float(baseline[i]),
                held_out=unseen[0] if unseen else None,
                controls=tuple(
                    ControlReading(int(control.labels[i]), float(of_one[i])) for control, of_one in controls
                ),
            )
        )
    return tuple(found)
