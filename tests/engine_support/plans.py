"""Random plans and prompts for the tests."""

from __future__ import annotations

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange, Positions
from pilothouse.core.plans import Plan, Readout

POSITIONS: tuple[Positions, ...] = (
    "all",
    "prompt",
    "generation",
    "last_prompt",
    PositionRange(1, 3),
    PositionRange(-2, 100),
)


def direction(rng: np.random.Generator, layers: list[int], d_model: int = 64) -> Direction:
    return Direction({layer: rng.normal(size=d_model).astype(np.float32) for layer in layers})


def edit(rng: np.random.Generator, layers: list[int], positions: Positions, strength: float = 1.0) -> Edit:
    found = direction(rng, layers)
    return Edit(
        "inline", found, {layer: strength * float(rng.normal()) for layer in layers}, positions, source="inline"
    )


def readout(rng: np.random.Generator, layers: list[int]) -> Readout:
    return Readout("probe", direction(rng, layers))


def prompts(rng: np.random.Generator, n: int, longest: int = 60) -> list[list[int]]:
    return [[int(t) for t in rng.integers(1, 500, size=rng.integers(3, longest))] for _ in range(n)]


def mixed_plans(rng: np.random.Generator, n: int, readouts: int = 3) -> list[Plan]:
    """Distinct plans of every kind: up to three edits at one or two layers, every selector, up to three readouts."""
    shared = [readout(rng, [2]), readout(rng, [0, 3]), readout(rng, [1])]
    plans = []
    for i in range(n):
        edits = tuple(
            edit(rng, [1, 2] if j == 0 else [int(rng.integers(0, 4))], POSITIONS[(i + j) % len(POSITIONS)], 2.0)
            for j in range(i % 4)
        )
        plans.append(Plan(edits, tuple(shared[: min(i % 4, readouts)]), prompt_scores=i % 3 == 1))
    return plans
