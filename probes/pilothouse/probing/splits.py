"""Which items train a probe, choose its layer, calibrate it and judge it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.statements import LabelledItem, digest_items

Indices = npt.NDArray[np.int64]
HELD_OUT = 0.2

SplitBy = Literal["group", "topic"]
"""What is kept in one split: the items of a group (or with the same words), or all those of a topic."""


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
        return {name: len(indices) for name, indices in self.by_name.items()}

    @property
    def by_name(self) -> dict[str, Indices]:
        """The indices of each split."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def split_items(items: Sequence[LabelledItem], seed: int, choosing: bool, by: SplitBy = "group") -> Splits:
    """The items' own splits; `calibrate` and `eval`, where no item names them, are a seeded fifth each of what is left,
    and so is `select` when the layer is to be chosen: else it may be empty.

    Shares are of groups (items with the same words are one too) or of topics, drawn within each label. ArtefactError
    when a split lacks one of the labels, or when two splits share a group: two that the items name, or two whose topics
    do.
    """
    labels = np.array([item.label for item in items])
    check_disjoint(items)
    named = np.array([item.split or "train" for item in items])
    rng = np.random.default_rng(seed)
    found = {split: np.flatnonzero(named == split) for split in ("train", "select", "calibrate", "eval")}
    for split in ("calibrate", "eval", "select"):
        if not len(found[split]) and (choosing or split != "select"):
            found["train"], found[split] = _carve(found["train"], items, rng, by)
    for split, indices in found.items():
        if set(labels[indices]) != {0, 1} and (choosing or split != "select"):
            raise ArtefactError(f"the {split} split needs items of both labels: too few items, or all of one kind")
    splits = Splits(**found)
    check_disjoint(with_splits(items, splits))
    return splits


def splits_of_training(card: Mapping[str, Any], items: Sequence[LabelledItem]) -> Splits | None:
    """Who trained, chose, calibrated and judged the probe of this card; None unless it was made from these items."""
    if card.get("data") != digest_items(items):
        return None
    return split_items(items, card["seed"], choosing=bool(card["sweep"]), by=card.get("split_by", "group"))


def with_splits(items: Sequence[LabelledItem], splits: Splits) -> list[LabelledItem]:
    """The items in their order, each with its split named."""
    names = {int(i): name for name, indices in splits.by_name.items() for i in indices}
    return [item.model_copy(update={"split": names[i]}) for i, item in enumerate(items)]


def check_disjoint(items: Sequence[LabelledItem]) -> None:
    """ArtefactError when the splits that the items name share a group or the very same words."""
    seen: dict[str, str] = {}
    for item in items:
        split = item.split or "train"
        if seen.setdefault(item.identity, split) != split:
            raise ArtefactError(f"{item.identity} is in two splits: {seen[item.identity]} and {split}")


def _carve(
    pool: Indices, items: Sequence[LabelledItem], rng: np.random.Generator, by: SplitBy
) -> tuple[Indices, Indices]:
    groups: dict[str, list[int]] = {}
    for i in pool:
        topic = items[i].topic if by == "topic" else None
        groups.setdefault(items[i].identity if topic is None else f"topic {topic!r}", []).append(int(i))
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
