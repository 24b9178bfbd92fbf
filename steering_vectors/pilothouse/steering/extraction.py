"""Vectors from contrast pairs: the stream is read through a model's sites, a method makes a row of it at each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pilothouse.core.artefact import check_name
from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import SITE, Float32
from pilothouse.steering.methods import SCALES, Method, find_direction
from pilothouse.steering.pairs import ContrastPair, digest_pairs
from pilothouse.steering.read_work import ReadWork
from pilothouse.steering.reading import Progress, Streams, read_streams
from pilothouse.steering.sweep import LayerReport, best_layer, report_layer
from pilothouse.steering.tokens import Token
from pilothouse.steering.vector import Vector


@dataclass(frozen=True)
class Recipe:
    """How a vector is made. layers None means every site, `best` keeps only the one that separates best."""

    method: Method = "mean_difference"
    token: Token = "last"
    layers: Sequence[int] | None = None
    best: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Extraction:
    """A vector and what it was made from: an entry a pair, JSON, with the pair, whether it was held out, and the
    projections of its positive and its negative on the unit row of each layer that was read."""

    vector: Vector
    items: Sequence[Mapping[str, Any]]


def extract_vector(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    *,
    name: str,
    recipe: Recipe | None = None,
    held_out: Sequence[ContrastPair] = (),
    work: ReadWork | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """A row a layer, from `pairs` alone; `held_out` pairs judge every layer, and the card keeps the verdicts.

    An item counts once however many tokens it has (`Token` says which). resid_norm is the mean L2 norm of the stream at
    the chosen tokens. What is read is kept in `work`, and what is there is not read again. `progress` is called with
    items done and in all. Memory: items x layers x d_model float32. ArtefactError for no pairs, a bad name, a layer
    without a site, an item too short for the token, a stream that is not finite, or `best` with nothing held out.
    """
    recipe = recipe or Recipe()
    layers = _checked_layers(source, pairs, name, recipe, held_out)
    everything = [*pairs, *held_out]
    streams = read_streams(source, everything, recipe.token, layers, work, progress)
    norms = {layer: streams.mean_norm(layer, len(pairs)) for layer in layers}
    rows, reports = dict[int, Float32](), dict[int, LayerReport]()
    for layer in layers:
        made_from = streams.sides(layer).take(slice(len(pairs)))
        try:
            rows[layer] = find_direction(recipe.method, made_from.positive, made_from.negative, recipe.seed)
        except ArtefactError as error:
            raise ArtefactError(f"layer {layer}: {error}") from None
        if held_out:
            judges = streams.sides(layer).take(slice(len(pairs), None))
            reports[layer] = report_layer(layer, rows[layer], made_from, judges, norms[layer])
    items = _projections(everything, len(pairs), streams, rows)
    if recipe.best:
        rows = {(best := best_layer(reports)): rows[best]}
    return Extraction(_vector(source, pairs, held_out, name, recipe, rows, norms, list(reports.values())), items)


def extraction_key(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    held_out: Sequence[ContrastPair],
    recipe: Recipe,
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """What an extraction reads: those of equal keys can share it. `weights` tells the model from others of its name,
    such as the type it runs in. JSON."""
    return {
        "model": source.shape.model,
        "weights": dict(weights),
        "layers": list(_chosen_layers(source, recipe)),
        "token": recipe.token,
        "pairs": digest_pairs([*pairs, *held_out]),
    }


def _chosen_layers(source: ActivationSource, recipe: Recipe) -> tuple[int, ...]:
    return tuple(sorted(set(source.shape.sites if recipe.layers is None else recipe.layers)))


def _projections(
    pairs: Sequence[ContrastPair], n_made_from: int, streams: Streams, rows: Mapping[int, Float32]
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [
        {**pair.model_dump(mode="json"), "held_out": number >= n_made_from, "projections": {}}
        for number, pair in enumerate(pairs)
    ]
    for layer, row in rows.items():
        wide = row.astype(np.float64)
        unit = wide / max(float(np.linalg.norm(wide)), float(np.finfo(np.float64).tiny))
        sides = streams.sides(layer)
        for item, positive, negative in zip(items, sides.positive @ unit, sides.negative @ unit, strict=True):
            item["projections"][str(layer)] = [float(positive), float(negative)]
    return items


def _checked_layers(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    name: str,
    recipe: Recipe,
    held_out: Sequence[ContrastPair],
) -> tuple[int, ...]:
    """The layers to read; ArtefactError for what can be seen to be wrong before anything is read."""
    check_name(name)
    if not pairs:
        raise ArtefactError("there are no contrast pairs to extract a vector from")
    if recipe.best and not held_out:
        raise ArtefactError("the best layer is chosen on held-out pairs, and none are held out")
    chosen = _chosen_layers(source, recipe)
    if not chosen:
        raise ArtefactError("no layers were chosen")
    if missing := set(chosen) - set(source.shape.sites):
        raise ArtefactError(f"layer {min(missing)} has no site in this model")
    return chosen


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
