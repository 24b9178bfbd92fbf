"""Which items train a probe, choose its layer, calibrate it and judge it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.statements import LabelledItem

Indices = npt.NDArray[np.int64]
HELD_OUT = 0.2


@dataclass(frozen=True)
class Splits:
    """Indices into the items, disjoint; nothing that two of them share in words or by group is left."""

    train: Indices
    select: Indices
    calibrate: Indices
    eval: Indices

    @property
    def sizes(self) -> dict[str, int]:
        """How many items each split has."""
        return {field.name: len(getattr(self, field.name)) for field in fields(self)}


def split_items(items: Sequence[LabelledItem], seed: int, choosing: bool) -> Splits:
    """The items' own splits; `calibrate` and `eval`, where no item names them, are a seeded fifth each of what is left,
    and so is `select` when the layer is to be chosen: else it may be empty.

    Shares are drawn by group (items with the same words are one too) and within each label. ArtefactError when a split
    lacks one of the labels, or when two splits that the items name share a group.
    """
    labels = np.array([item.label for item in items])
    check_disjoint(items)
    named = np.array([item.split or "train" for item in items])
    rng = np.random.default_rng(seed)
    found = {split: np.flatnonzero(named == split) for split in ("train", "select", "calibrate", "eval")}
    for split in ("calibrate", "eval", "select"):
        if not len(found[split]) and (choosing or split != "select"):
            found["train"], found[split] = _carve(found["train"], items, rng)
    for split, indices in found.items():
        if set(labels[indices]) != {0, 1} and (choosing or split != "select"):
            raise ArtefactError(f"the {split} split needs items of both labels: too few items, or all of one kind")
    return Splits(**found)


def check_disjoint(items: Sequence[LabelledItem]) -> None:
    """ArtefactError when the splits that the items name share a group or the very same words."""
    seen: dict[str, str] = {}
    for item in items:
        split = item.split or "train"
        if seen.setdefault(item.identity, split) != split:
            raise ArtefactError(f"{item.identity} is in two splits: {seen[item.identity]} and {split}")


def _carve(pool: Indices, items: Sequence[LabelledItem], rng: np.random.Generator) -> tuple[Indices, Indices]:
    groups: dict[str, list[int]] = {}
    for i in pool:
        groups.setdefault(items[i].identity, []).append(int(i))
    taken: list[int] = []
    for members in _by_labels(groups, items).values():
        chosen = rng.permutation(len(members))[: max(1, round(HELD_OUT * len(members)))]
        taken.extend(i for group in chosen for i in members[group])
    held_out = np.sort(np.array(taken, dtype=np.int64))
    return np.setdiff1d(pool, held_out), held_out


def _by_labels(
    groups: Mapping[str, list[int]], items: Sequence[LabelledItem]
) -> dict[tuple[int, ...], list[list[int]]]:
    """Groups of items by the labels in them: of 0 only, of 1 only, of both."""
    found: dict[tuple[int, ...], list[list[int]]] = {}
    for members in groups.values():
        found.setdefault(tuple(sorted({items[i].label for i in members})), []).append(members)
    return dict(sorted(found.items()))
