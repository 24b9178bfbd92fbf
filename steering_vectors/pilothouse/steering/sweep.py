"""Which layer to steer: how well each layer's direction separates pairs that it was not made from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.pairs import ContrastPair

HELD_OUT = "select"
HELD_OUT_SHARE = 0.3


@dataclass(frozen=True)
class LayerReport:
    """One layer on held-out pairs, projected on its row.

    auroc: how often a positive item projects above a negative one; accuracy: share of items on their side of the middle
    between the means of the pairs that the row was made from; separation: distance of the two means in pooled standard
    deviations; row_norm, stream_norm: L2 norms of the row and, in the mean, of the stream at the chosen tokens.
    """

    layer: int
    auroc: float
    accuracy: float
    separation: float
    row_norm: float
    stream_norm: float

    @property
    def card(self) -> dict[str, Any]:
        """As a vector's card keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Sides:
    """Activations of pairs at one layer: positive and negative [pairs, d_model] float32."""

    positive: Float32
    negative: Float32

    def take(self, pairs: slice) -> "Sides":
        """Some of the pairs."""
        return Sides(self.positive[pairs], self.negative[pairs])


def hold_out(pairs: Sequence[ContrastPair], seed: int) -> tuple[list[ContrastPair], list[ContrastPair]]:
    """Pairs to make directions from, and pairs to judge them by.

    Where the file has a split `select`, that is held out and directions are made from the split `train`, or from all
    the rest when there is no `train`. Where it has none, a seeded 30% are held out. ArtefactError for too few pairs.
    """
    held = [pair for pair in pairs if pair.split == HELD_OUT]
    if held:
        rest = [pair for pair in pairs if pair.split != HELD_OUT]
        made_from = [pair for pair in rest if pair.split == "train"] or rest
    else:
        order = np.random.default_rng(seed).permutation(len(pairs))
        chosen = set(order[: max(round(HELD_OUT_SHARE * len(pairs)), 1)].tolist())
        held = [pair for i, pair in enumerate(pairs) if i in chosen]
        made_from = [pair for i, pair in enumerate(pairs) if i not in chosen]
    if not made_from or not held:
        raise ArtefactError(f"of {len(pairs)} pairs, {len(held)} are held out: none are left to make a vector from")
    return made_from, held


def report_layer(layer: int, row: Float32, made_from: Sides, held_out: Sides, stream_norm: float) -> LayerReport:
    """How well `row` [d_model], made from the one, separates the other."""
    from sklearn.metrics import roc_auc_score

    wide = row.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    unit = wide / norm if norm > 0 else wide
    middle = float(np.mean([(side @ unit).mean() for side in (made_from.positive, made_from.negative)]))
    high, low = held_out.positive @ unit, held_out.negative @ unit
    spread = float(np.sqrt((high.var() + low.var()) / 2))
    gap = float(high.mean() - low.mean())
    return LayerReport(
        layer=layer,
        auroc=float(roc_auc_score(np.repeat([1, 0], [len(high), len(low)]), np.concatenate([high, low]))),
        accuracy=float(np.concatenate([high > middle, low <= middle]).mean()),
        # Means may differ with no spread at all, but a card holds no infinity.
        separation=gap / max(spread, 1e-9 * max(abs(gap), 1e-30)),
        row_norm=norm,
        stream_norm=stream_norm,
    )


def best_layer(reports: Mapping[int, LayerReport]) -> int:
    """The layer that separates best: by AUROC, then accuracy, then separation; the earliest of equals."""
    return max(reports, key=lambda layer: (reports[layer].auroc, reports[layer].accuracy, reports[layer].separation))
