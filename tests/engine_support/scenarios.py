"""What the fuzzer plays: small integers that hypothesis draws, and the prompts and plans that they stand for.

Tokens and directions come from the scenario's seed, so a scenario is short to print and the same whenever it is played.
Prompts grow from one stream of tokens and plans from few directions, so that blocks, slots and columns are shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from hypothesis import strategies as st

from engine_support import plans as make
from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange, Positions
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import Plan, Readout
from pilothouse.engine.wire import resolve

VOCABULARY = 500
PREFIXES = (0, 20, 40, 70, 100)
"""Lengths that prompts take from the common stream: none, and some that end inside and some behind a block of 32."""
PHASES = 3
SHARED_DIRECTIONS = 4
"""Edits and readouts with a smaller number are the scenario's; others belong to one request alone."""


@dataclass(frozen=True)
class Change:
    """One edit: which direction, and where."""

    direction: int
    positions: Positions


@dataclass(frozen=True)
class Ask:
    """One request. `follows` picks an earlier phase's request: this one's prompt begins with its prompt and answer, and
    unless `keeps` is "nothing" its plan is that one's, with "edits" at the positions `moved_to`."""

    phase: int
    prefix: int
    tail: int
    follows: int | None
    keeps: Literal["nothing", "plan", "edits"]
    moved_to: Positions
    edits: tuple[Change, ...]
    readouts: tuple[int, ...]
    prompt_scores: bool
    n: int
    warm: bool
    max_tokens: int
    arrives: int
    aborted_after: int | None

    @property
    def leaves(self) -> float:
        """The step at which it is given up, if it still runs."""
        return math.inf if self.aborted_after is None else self.arrives + self.aborted_after

    def after(self, earlier: Ask) -> Ask:
        """What is planned when this request follows `earlier`."""
        if self.keeps == "nothing":
            return self
        if self.keeps == "plan":
            return earlier
        return replace(earlier, edits=tuple(replace(change, positions=self.moved_to) for change in earlier.edits))


@dataclass(frozen=True)
class Scenario:
    """Requests in phases; each phase ends before the next begins, and may begin with an empty cache."""

    seed: int
    forgets: tuple[bool, ...]
    asks: tuple[Ask, ...]


def _ranges() -> st.SearchStrategy[Positions]:
    from_start = st.tuples(st.integers(0, 90), st.integers(1, 50)).map(lambda p: PositionRange(p[0], p[0] + p[1]))
    from_end = st.tuples(st.integers(1, 40), st.integers(0, 200)).map(lambda p: PositionRange(-p[0], p[1]))
    inside = st.tuples(st.integers(1, 40), st.integers(1, 39)).map(lambda p: PositionRange(-p[0] - p[1], -p[1]))
    return st.one_of(from_start, from_end, inside)


def _positions() -> st.SearchStrategy[Positions]:
    named: st.SearchStrategy[Positions] = st.sampled_from(("all", "prompt", "generation", "last_prompt"))
    return st.one_of(named, named, _ranges())


def asks() -> st.SearchStrategy[Ask]:
    """One request of any kind."""
    number = st.integers(0, SHARED_DIRECTIONS + 1)
    change = st.builds(Change, number, _positions())
    return st.builds(
        Ask,
        phase=st.integers(0, PHASES - 1),
        prefix=st.integers(0, len(PREFIXES) - 1),
        tail=st.integers(1, 25),
        follows=st.integers(-5, 13).map(lambda k: None if k < 0 else k),
        keeps=st.sampled_from(("nothing", "plan", "edits", "edits")),
        moved_to=_positions(),
        edits=st.one_of(st.tuples(change), st.lists(change, max_size=3).map(tuple)),
        readouts=st.lists(number, max_size=3).map(tuple),
        prompt_scores=st.sampled_from((False, False, True)),
        n=st.sampled_from((1, 1, 2)),
        warm=st.booleans(),
        max_tokens=st.integers(1, 12),
        arrives=st.integers(0, 15),
        aborted_after=st.one_of(st.none(), st.none(), st.none(), st.integers(1, 12)),
    )


def scenarios(fewest: int = 7, most: int = 14) -> st.SearchStrategy[Scenario]:
    """Any scenario of that many requests."""
    return st.builds(
        Scenario,
        seed=st.integers(0, 2**32 - 1),
        forgets=st.tuples(*[st.sampled_from((False, False, False, True))] * PHASES),
        asks=st.lists(asks(), min_size=fewest, max_size=most).map(tuple),
    )


class Props:
    """The tokens and directions of one scenario."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._stream = self._tokens(0, max(PREFIXES))

    def prompt(self, number: int, ask: Ask, begins: Sequence[int] | None) -> list[int]:
        """The prompt of request `number`; `begins` is the conversation that it goes on with, if any."""
        head = list(begins) if begins is not None else self._stream[: PREFIXES[ask.prefix]]
        return head + self._tokens(1 + number, ask.tail)

    def plan(self, number: int, ask: Ask, n_prompt: int, layout: EngineLayout) -> Plan:
        """The plan of request `number`, without the edits that its prompt or the engine has no room for."""
        readouts = tuple(Readout(f"probe {k}", self._direction("probe", k, number)[0]) for k in ask.readouts)
        edits: list[Edit] = []
        for change in ask.edits:
            found, coefficients = self._direction("edit", change.direction, number)
            edits.append(Edit("inline", found, coefficients, change.positions, source="inline"))
            try:
                resolve(Plan(tuple(edits), readouts), n_prompt, layout)
            except BadRequest:
                edits.pop()
        return Plan(tuple(edits), readouts, ask.prompt_scores)

    def _direction(self, kind: str, k: int, number: int) -> tuple[Direction, dict[int, float]]:
        owner = 0 if k < SHARED_DIRECTIONS else 1 + number
        rng = np.random.default_rng([self._seed, len(kind), k, owner])
        layers = sorted(int(layer) for layer in rng.choice(4, size=rng.integers(1, 3), replace=False))
        sign = rng.choice((-1.0, 1.0))
        return make.direction(rng, layers), {layer: float(sign * rng.uniform(1.0, 3.0)) for layer in layers}

    def _tokens(self, owner: int, n: int) -> list[int]:
        rng = np.random.default_rng([self._seed, owner])
        return [int(t) for t in rng.integers(1, VOCABULARY, size=n)]
