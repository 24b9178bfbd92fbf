"""What a probe's score has to be held against: labels that mean nothing, and topics that it has not seen.

Hewitt & Liang, Designing and Interpreting Probes with Control Tasks, 2019: the labels of a control are drawn at random
but are the same wherever an item occurs, so that whatever can be memorised is as easy to memorise as in the real task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pilothouse.probing.fitting import Fitter, Samples
from pilothouse.probing.metrics import Labels
from pilothouse.probing.probe import Probe
from pilothouse.probing.statements import LabelledItem

N_CONTROLS = 5
TOPIC_FOLDS = 5


@dataclass(frozen=True)
class Control:
    """A probe fitted on shuffled labels, and the labels [items] that it should give the judged items."""

    probe: Probe
    labels: Labels


def shuffled_controls(
    fitter: Fitter,
    probe: Probe,
    training: Samples,
    trained_on: Sequence[LabelledItem],
    judged: Sequence[LabelledItem],
    seed: int,
) -> list[Control]:
    """Five probes like `probe`, fitted on labels turned over by a coin for each group of items.

    `training` are rows of the items `trained_on`. A coin that leaves one label only is not counted: fewer than five,
    or none, come of few items.
    """
    found = []
    for draw in range(N_CONTROLS):
        flips = _flips([*trained_on, *judged], np.random.default_rng([seed, draw]))
        shuffled = training.flipped(flips[: len(trained_on)])
        labels = np.array([item.label for item in judged], dtype=np.int64) ^ flips[len(trained_on) :]
        if shuffled.has_both_labels and set(labels.tolist()) == {0, 1}:
            found.append(Control(replace(probe, **fitter.fit(shuffled)), labels))
        else:
            fitter.advance(1)
    return found


def topic_folds(training: Sequence[LabelledItem], judged: Sequence[LabelledItem]) -> list[set[str]]:
    """The judged topics: in at most five sets those that are trained on too, and in one more those that are not."""
    topics = {item.topic for item in judged if item.topic is not None}
    trained = {item.topic for item in training}
    shared = sorted(topics & trained)
    folds = [set(shared[i::TOPIC_FOLDS]) for i in range(TOPIC_FOLDS)]
    return [fold for fold in [*folds, topics - trained] if fold]


def held_out_topics(
    fitter: Fitter, probe: Probe, training: Samples, folds: Sequence[set[str]]
) -> list[tuple[set[str], Probe]]:
    """For each set of topics a probe like `probe` fitted without them, where that leaves both labels."""
    found = []
    for fold in folds:
        rest = training.without_topics(fold)
        if rest.has_both_labels:
            found.append((fold, replace(probe, **fitter.fit(rest))))
        else:
            fitter.advance(1)
    return found


def _flips(items: Sequence[LabelledItem], rng: np.random.Generator) -> Labels:
    """A coin [items] for each identity: all items of a group, and an item that occurs twice, fall the same way."""
    identities = sorted({item.identity for item in items})
    coin = dict(zip(identities, rng.integers(0, 2, len(identities)).tolist(), strict=True))
    return np.array([coin[item.identity] for item in items], dtype=np.int64)
