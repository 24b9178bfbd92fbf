"""Vectors from contrast pairs by the difference of means (Rimsky et al., Contrastive Activation Addition, 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Reading, batches, read_item
from pilothouse.core.plans import Direction
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import SITE, Float32
from pilothouse.steering.pairs import ContrastPair, digest_pairs
from pilothouse.steering.vector import Vector

BATCH = 64


@dataclass
class _LayerSums:
    """Running sums at one layer, in float64 so that the order of many small terms does not show."""

    width: int
    sides: dict[bool, npt.NDArray[np.float64]] = field(init=False)
    norm: float = 0.0
    n_norms: int = 0

    def __post_init__(self) -> None:
        self.sides = {side: np.zeros(self.width) for side in (True, False)}

    def add(self, positive: bool, stream: Float32) -> None:
        """Take in one item's stream [tokens, d_model] at its chosen tokens."""
        wide = stream.astype(np.float64)
        self.sides[positive] += wide.mean(axis=0)
        self.norm += float(np.linalg.norm(wide, axis=1).sum())
        self.n_norms += len(wide)


def extract_mean_difference(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    *,
    name: str,
    layers: Sequence[int] | None,
    token: Literal["last", "mean"],
    progress: Callable[[int, int], None] | None = None,
) -> Vector:
    """Per layer, the mean stream of the positive items minus that of the negative ones.

    An item counts once however many tokens it has: `token` picks its last token, or the mean over its tokens without
    BOS (of a chat that ends with an answer: the answer's last token, or its mean). layers None means every site.
    resid_norm is the mean L2 norm of the stream at those tokens. `progress` is called with items done and in all.
    ArtefactError for no pairs, a bad name, a layer without a site, or a stream that is not finite.
    """
    check_name(name)
    if not pairs:
        raise ArtefactError("there are no contrast pairs to extract a vector from")
    chosen = tuple(sorted(set(source.shape.sites if layers is None else layers)))
    if not chosen or (missing := set(chosen) - set(source.shape.sites)):
        raise ArtefactError(f"layer {min(missing)} has no site in this model" if chosen else "no layers were chosen")
    sums = {layer: _LayerSums(source.shape.d_model) for layer in chosen}
    _accumulate(source, pairs, token, sums, progress)
    rows = {
        layer: ((total.sides[True] - total.sides[False]) / len(pairs)).astype(np.float32)
        for layer, total in sums.items()
    }
    if not all(np.isfinite(row).all() for row in rows.values()):
        raise ArtefactError("the model's stream holds NaN or infinite numbers on these pairs")
    return _vector(source, pairs, name, token, rows, sums)


def _accumulate(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    token: Literal["last", "mean"],
    sums: dict[int, _LayerSums],
    progress: Callable[[int, int], None] | None,
) -> None:
    items = [(side, pair.positive if side else pair.negative) for pair in pairs for side in (True, False)]
    done = 0
    for batch in batches(items, BATCH):
        readings = [read_item(source, item) for _, item in batch]
        streams = source.read([reading.token_ids for reading in readings], tuple(sums))
        for (side, _), reading, stream in zip(batch, readings, streams, strict=True):
            for layer, total in sums.items():
                total.add(side, stream[layer][_chosen(reading, token)])
        done += len(batch)
        if progress:
            progress(done, len(items))


def _chosen(reading: Reading, token: Literal["last", "mean"]) -> slice:
    return slice(reading.stop - 1 if token == "last" else reading.start, reading.stop)


def _vector(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    name: str,
    token: str,
    rows: dict[int, Float32],
    sums: dict[int, _LayerSums],
) -> Vector:
    vector = Vector(
        name=name,
        direction=Direction(rows),
        model=source.shape.model,
        site=SITE,
        method="mean_difference",
        default_layers=tuple(rows),
        resid_norm={layer: total.norm / total.n_norms for layer, total in sums.items()},
        recommended=None,
        card={
            "n_pairs": len(pairs),
            "token": token,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": digest_pairs(pairs),
        },
    )
    return replace(vector, card=vector.full_card)
