"""Vectors from contrast pairs: the stream is read through a model's sites, a method makes a row of it at each layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item, batches, read_item
from pilothouse.core.plans import Direction
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import SITE, Float32
from pilothouse.steering.methods import SCALES, Method, find_direction
from pilothouse.steering.pairs import ContrastPair, digest_pairs
from pilothouse.steering.sweep import LayerReport, Sides, best_layer, report_layer
from pilothouse.steering.tokens import Token, chosen_tokens
from pilothouse.steering.vector import Vector

BATCH = 64

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How a vector is made. layers None means every site, `best` keeps only the one that separates best."""

    method: Method = "mean_difference"
    token: Token = "last"
    layers: Sequence[int] | None = None
    best: bool = False
    seed: int = 0


@dataclass(frozen=True)
class _Streams:
    """One float32 row [d_model] an item at each layer, [items, d_model], and the mean L2 norm of the stream there.

    Items are pairs' positives and negatives in turn. Norms are of the pairs that directions are made from.
    """

    layers: dict[int, Float32]
    norms: dict[int, float]

    def sides(self, layer: int) -> Sides:
        return Sides(self.layers[layer][::2], self.layers[layer][1::2])


def extract_vector(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    *,
    name: str,
    recipe: Recipe | None = None,
    held_out: Sequence[ContrastPair] = (),
    progress: Progress | None = None,
) -> Vector:
    """A row a layer, from `pairs` alone; `held_out` pairs judge every layer, and the card keeps the verdicts.

    An item counts once however many tokens it has (`Token` says which). resid_norm is the mean L2 norm of the stream at
    the chosen tokens. `progress` is called with items done and in all. Memory: items x layers x d_model float32.
    ArtefactError for no pairs, a bad name, a layer without a site, an item too short for the token, a stream that is
    not finite, or `best` with nothing held out.
    """
    recipe = recipe or Recipe()
    layers = _checked_layers(source, pairs, name, recipe, held_out)
    streams = _read(source, [*pairs, *held_out], len(pairs), recipe.token, layers, progress)
    rows, reports = dict[int, Float32](), dict[int, LayerReport]()
    for layer in layers:
        made_from = streams.sides(layer).take(slice(len(pairs)))
        try:
            rows[layer] = find_direction(recipe.method, made_from.positive, made_from.negative, recipe.seed)
        except ArtefactError as error:
            raise ArtefactError(f"layer {layer}: {error}") from None
        if held_out:
            judges = streams.sides(layer).take(slice(len(pairs), None))
            reports[layer] = report_layer(layer, rows[layer], made_from, judges, streams.norms[layer])
    if recipe.best:
        rows = {(best := best_layer(reports)): rows[best]}
    return _vector(source, pairs, held_out, name, recipe, rows, streams.norms, list(reports.values()))


def _checked_layers(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    name: str,
    recipe: Recipe,
    held_out: Sequence[ContrastPair],
) -> tuple[int, ...]:
    check_name(name)
    if not pairs:
        raise ArtefactError("there are no contrast pairs to extract a vector from")
    if recipe.best and not held_out:
        raise ArtefactError("the best layer is chosen on held-out pairs, and none are held out")
    chosen = tuple(sorted(set(source.shape.sites if recipe.layers is None else recipe.layers)))
    if not chosen:
        raise ArtefactError("no layers were chosen")
    if missing := set(chosen) - set(source.shape.sites):
        raise ArtefactError(f"layer {min(missing)} has no site in this model")
    return chosen


def _read(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    n_made_from: int,
    token: Token,
    layers: tuple[int, ...],
    progress: Progress | None,
) -> _Streams:
    n_items = 2 * len(pairs)
    streams = {layer: np.empty((n_items, source.shape.d_model), dtype=np.float32) for layer in layers}
    norms, n_norms, done = dict.fromkeys(layers, 0.0), 0, 0
    for batch in batches(list(_items(pairs)), BATCH):
        readings = [read_item(source, item) for item, _ in batch]
        chosen = [
            chosen_tokens(reading, item, token, what) for reading, (item, what) in zip(readings, batch, strict=True)
        ]
        for place, stream in zip(chosen, source.read([r.token_ids for r in readings], layers), strict=True):
            counts = done < 2 * n_made_from
            n_norms += (place.stop - place.start) * counts
            for layer in layers:
                # In float64: the order of many small terms must not show.
                wide = stream[layer][place].astype(np.float64)
                streams[layer][done] = wide.mean(axis=0)
                norms[layer] += float(np.linalg.norm(wide, axis=1).sum()) * counts
            done += 1
        if progress:
            progress(done, n_items)
    return _Streams(streams, {layer: total / n_norms for layer, total in norms.items()})


def _items(pairs: Sequence[ContrastPair]) -> Iterator[tuple[Item, str]]:
    for number, pair in enumerate(pairs, start=1):
        yield pair.positive, f"the positive item of pair {number}"
        yield pair.negative, f"the negative item of pair {number}"


def _vector(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    held_out: Sequence[ContrastPair],
    name: str,
    recipe: Recipe,
    rows: dict[int, Float32],
    norms: dict[int, float],
    reports: list[LayerReport],
) -> Vector:
    card: dict[str, Any] = {
        "n_pairs": len(pairs),
        "token": recipe.token,
        "scale": SCALES[recipe.method],
        "norms": {str(layer): float(np.linalg.norm(row.astype(np.float64))) for layer, row in rows.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": digest_pairs(pairs),
    }
    if recipe.method == "lat":
        card["seed"] = recipe.seed
    if reports:
        card["n_held_out"] = len(held_out)
        card["held_out"] = digest_pairs(held_out)
        card["sweep"] = [report.card for report in reports]
    vector = Vector(
        name=name,
        direction=Direction(rows),
        model=source.shape.model,
        site=SITE,
        method=recipe.method,
        default_layers=tuple(rows),
        resid_norm={layer: norms[layer] for layer in rows},
        recommended=None,
        card=card,
    )
    return replace(vector, card=vector.full_card)
