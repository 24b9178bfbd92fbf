"""Random plans and prompts for the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import OF_FEATURE, OPERATIONS, Edit, Gate, Operation, PositionRange, Positions, Reader
from pilothouse.core.plans import Plan, Readout

POSITIONS: tuple[Positions, ...] = (
    "all",
    "prompt",
    "generation",
    "last_prompt",
    PositionRange(1, 3),
    PositionRange(-2, 100),
)

SINK = 511
"""A token whose stream is far from those of all others in the tests' models. Prompts of random tokens have none."""


def direction(rng: np.random.Generator, layers: list[int], d_model: int = 64) -> Direction:
    return Direction({layer: rng.normal(size=d_model).astype(np.float32) for layer in layers})


def edit(rng: np.random.Generator, layers: list[int], positions: Positions, strength: float = 1.0) -> Edit:
    found = direction(rng, layers)
    return Edit(
        "inline", found, {layer: strength * float(rng.normal()) for layer in layers}, positions, source="inline"
    )


def chained_edit(
    rng: np.random.Generator, op: Operation, layers: list[int], positions: Positions, **settings: Any
) -> Edit:
    """An edit of any kind, of a size that shows."""
    found = direction(rng, layers)
    feature = op in OF_FEATURE
    reader = Reader(direction(rng, layers), float(rng.normal()), float(abs(rng.normal()))) if feature else None
    values = {"add": 2.0, "ablate": 1.0, "set": 6.0, "cap": 1.0, "clamp": 3.0, "min_clamp": 3.0}
    bounds = dict.fromkeys(layers, (-1.0, 0.5)) if op == "cap" else {}
    return Edit(
        "inline",
        found,
        dict.fromkeys(layers, values[op]),
        positions,
        op=op,
        source="inline",
        bounds=bounds,
        reader=reader,
        **settings,
    )


def chained_plans(rng: np.random.Generator, n: int, most: int = 4) -> list[Plan]:
    """Distinct plans of up to `most` edits of every kind and selector at layers 1 and 2, some of which keep norms."""
    plans = []
    for i in range(n):
        edits = tuple(
            chained_edit(
                rng,
                OPERATIONS[int(rng.integers(len(OPERATIONS)))] if j else OPERATIONS[i % len(OPERATIONS)],
                [[1], [2], [1, 2]][int(rng.integers(3))],
                POSITIONS[int(rng.integers(len(POSITIONS)))] if j else POSITIONS[(i // 2) % len(POSITIONS)],
                preserve_norm=bool(rng.integers(4) == 0),
            )
            for j in range(1 + i % most)
        )
        plans.append(Plan(edits, (readout(rng, [1, 2, 3]),), prompt_scores=i % 3 == 1))
    return plans


def gated(
    rng: np.random.Generator, change: Edit, scope: Literal["token", "rest"], far: float, stops: bool = False
) -> Plan:
    """`change` behind a gate that a random readout at layer 0 opens where it is beyond `far`, up or down."""
    probe, above = readout(rng, [0]), bool(rng.integers(2))
    gate = Gate("probe", probe.direction, above, far if above else -far, scope, stops)
    return Plan((replace(change, gate=gate),), (probe,), prompt_scores=bool(rng.integers(2)))


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
