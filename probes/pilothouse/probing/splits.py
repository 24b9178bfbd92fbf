"""Which items train a probe, choose its layer, calibrate it and judge it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.statements import LabelledItem

Indices = npt.NDArray[np.int64]
HELD_OUT = 0.2


@dataclass(frozen=True)
class Splits:
    """Indices into the items, disjoint but for `select`, which is a part of `train` when the items name none."""

    train: Indices
    select: Indices
    calibrate: Indices
    eval: Indices

    @property
    def fit(self) -> Indices:
        """What a layer is fitted on while it competes with others: the training items that do not choose among them."""
        return np.setdiff1d(self.train, self.select)


def split_items(items: Sequence[LabelledItem], seed: int) -> Splits:
    """The items' own splits; `calibrate` and `eval`, where no item names them, are a seeded fifth each of the rest.

    Shares are drawn within each label. ArtefactError when a split lacks one of the labels.
    """
    labels = np.array([item.label for item in items])
    named = np.array([item.split or "train" for item in items])
    rng = np.random.default_rng(seed)
    found = {split: np.flatnonzero(named == split) for split in ("train", "select", "calibrate", "eval")}
    for split in ("calibrate", "eval"):
        if not len(found[split]):
            found["train"], found[split] = _carve(found["train"], labels, rng)
    if not len(found["select"]):
        _, found["select"] = _carve(found["train"], labels, rng)
    splits = Splits(**found)
    for split, indices in {**found, "train": splits.fit}.items():
        if set(labels[indices]) != {0, 1}:
            raise ArtefactError(f"the {split} split needs items of both labels: too few items, or all of one kind")
    return splits


def _carve(pool: Indices, labels: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[Indices, Indices]:
    taken = []
    for label in (0, 1):
        of_label = rng.permutation(pool[labels[pool] == label])
        taken.append(of_label[: max(1, round(HELD_OUT * len(of_label)))])
    held_out = np.sort(np.concatenate(taken))
    return np.setdiff1d(pool, held_out), held_out
