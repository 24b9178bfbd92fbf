"""What a dose is measured with: data, settings, probes that watch, and random vectors as control."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import PositionRange, Positions
from pilothouse.core.serving import SteeredModel
from pilothouse.core.sites import Float32
from pilothouse.steering.dose_items import DosePrompt, digest_lines
from pilothouse.steering.vector import Vector

CONTROL_STREAM = 0xD05E
"""Keeps controls apart from whatever else was drawn with a plain small seed, the vector itself perhaps."""


@dataclass(frozen=True, eq=False)
class DoseProbe:
    """A probe to watch: its readout, its score of an answer given raw readouts of the generated tokens [n] (NaN at the
    last) and the one at the prompt's end, and an identity of what it computes."""

    name: str
    direction: Direction
    score: Callable[[Float32, float], float | None]
    version: str = ""


@dataclass(frozen=True)
class DoseData:
    """effect: prompts that show the effect or not; facts: prompts that show capability; neutral: texts to predict."""

    effect: Sequence[DosePrompt]
    facts: Sequence[DosePrompt]
    neutral: Sequence[str]


@dataclass(frozen=True)
class DoseSettings:
    """layers None means the vector's default ones; controls: random vectors of equal norm; max_tokens: of an answer;
    weights: what tells the model from others of its name, such as the type it runs in."""

    strengths: Sequence[float]
    positions: Positions = "generation"
    layers: Sequence[int] | None = None
    controls: int = 3
    max_tokens: int = 32
    seed: int = 0
    weights: Mapping[str, str] = field(default_factory=dict)


def chosen_layers(vector: Vector, settings: DoseSettings) -> tuple[int, ...]:
    """The layers that are steered, in order."""
    return vector.default_layers if settings.layers is None else tuple(sorted(set(settings.layers)))


def control_direction(direction: Direction, layers: Sequence[int], seed: int, number: int) -> Direction:
    """A random row for each of `layers`, uniform in its direction and as long as the row of `direction`."""
    rows = dict[int, Float32]()
    for layer in layers:
        row = direction.layers[layer].astype(np.float64)
        noise = np.random.default_rng([CONTROL_STREAM, seed, number, layer]).standard_normal(len(row))
        rows[layer] = (noise / np.linalg.norm(noise) * np.linalg.norm(row)).astype(np.float32)
    return Direction(rows)


def dose_key(
    model: SteeredModel, vector: Vector, data: DoseData, settings: DoseSettings, probes: Sequence[DoseProbe]
) -> dict[str, Any]:
    """What one measurement depends on beside its strength and control: runs of equal keys can share them. JSON."""
    positions = settings.positions
    return {
        "vector": vector.digest,
        "model": model.shape.model,
        "weights": dict(settings.weights),
        "layers": list(chosen_layers(vector, settings)),
        "positions": asdict(positions) if isinstance(positions, PositionRange) else positions,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "effect": digest_lines(data.effect),
        "facts": digest_lines(data.facts),
        "neutral": digest_lines(data.neutral),
        "probes": {probe.name: probe.version for probe in probes},
    }
