"""What requests leave behind in scheduler and worker: nothing that adds up, however they end."""

from __future__ import annotations

import gc
import random
import tracemalloc

import numpy as np
import pytest
import torch
from engine_support.harness import Engine, Reference

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Positions
from pilothouse.core.messages import WireDirections
from pilothouse.core.plans import Plan, Readout
from pilothouse.engine.courier import Courier

pytestmark = pytest.mark.engine

WARM_UP = 200
REQUESTS = 400
MOST_PER_THOUSAND = 1_000_000
"""Bytes of growth that 1,000 requests may leave."""
N_PROMPTS = 12
POSITIONS: tuple[Positions, ...] = ("all", "generation", "last_prompt")


def plan(rng: random.Random) -> Plan:
    """Directions that no other request has; some plans read, some keep the scores of their prompts."""
    rows = np.random.default_rng(rng.randrange(1 << 60)).normal(size=(2, 64)).astype(np.float32)
    edit = Edit("edit", Direction({1: rows[0]}), {1: 0.1}, rng.choice(POSITIONS), source="inline")
    readouts = (Readout("probe", Direction({2: rows[1]})),) if rng.random() < 0.7 else ()
    return Plan((edit,), readouts, prompt_scores=bool(readouts) and rng.random() < 0.5)


class ShortMemory(Courier):
    """As the server's, with room for a few hundred directions: the engine is soon told to forget the oldest."""

    def __init__(self) -> None:
        super().__init__(64 << 10)

    def parcel(self, directions: list[Direction]) -> WireDirections | None:
        parcel = super().parcel(directions)
        if parcel is not None:
            self.arrived(parcel)
        return parcel


def serve(engine: Engine, total: int, rng: random.Random) -> int:
    """`total` requests, eight at once, every fifth given up on its way and every seventh with four sequences."""
    aborted = 0
    for first in range(0, total, 8):
        jobs = []
        for number in range(first, min(first + 8, total)):
            prompt = [1 + rng.randrange(N_PROMPTS), *range(10, 10 + rng.randrange(40, 60))]
            several = {"n": 4, "temperature": 1.0} if number % 7 == 0 else {}
            jobs.append(engine.submit(prompt, plan(rng), rng.randint(1, 6), **several))
        for number, job in enumerate(jobs):
            if number % 5 == 0:
                engine.step()
                engine.abort(job)
                aborted += job.aborted
        engine.drain()
    return aborted


def tensors() -> int:
    """How many torch tensors are alive in this process."""
    return sum(1 for thing in gc.get_objects() if isinstance(thing, torch.Tensor))


def test_memory_is_flat(
    tight_qwen3: tuple[Engine, Reference], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, _ = tight_qwen3
    rng = random.Random(5)
    monkeypatch.setattr(engine, "_courier", ShortMemory())
    tracemalloc.start()
    try:
        serve(engine, WARM_UP, rng)
        gc.collect()
        before, alive = tracemalloc.get_traced_memory()[0], tensors()
        assert serve(engine, REQUESTS, rng)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    grown = (after - before) * 1000 / REQUESTS
    with capsys.disabled():
        print(f"\nleft behind: {grown / 1e6:+.3f} MB per 1,000 requests")
    assert grown <= MOST_PER_THOUSAND
    assert tensors() <= alive + 50
