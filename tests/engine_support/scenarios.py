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
from pilothouse.core.edits import OF_FEATURE, OPERATIONS, Edit, Gate, Operation, PositionRange, Positions, Reader
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import Plan, Readout
from pilothouse.engine.wire import resolve

VOCABULARY = 500
PREFIXES = (0, 1, 20, 40, 70, 100)
"""Lengths that prompts take from the common stream, whose first token is what BOS is in real models: none, that token,
and some that end inside and some behind a block of 32."""
PHASES = 3
SHARED_DIRECTIONS = 4
"""Edits and readouts with a smaller number are the scenario's; others belong to one request alone."""


SPREADS = (30.0, 40.0, 47.0, 55.0)
"""The standard deviation of what a random direction reads in the tests' models, by layer."""
READER_SCALE = 0.125
"""Makes an encoder's product with a decoder about 1, as in an SAE: a clamp must not multiply what float32 loses."""


@dataclass(frozen=True)
class Opening:
    """A gate: which readout it looks at, and how many of that readout's spreads are beyond."""

    readout: int
    above: bool
    far: float
    scope: Literal["token", "rest"]
    stops: bool


@dataclass(frozen=True)
class Change:
    """One edit: which direction, where, and how."""

    direction: int
    positions: Positions
    op: Operation
    preserve_norm: bool
    gate: Opening | None


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


def _changes(number: st.SearchStrategy[int]) -> st.SearchStrategy[Change]:
    """One edit of any kind, often behind a gate. Gates of scope token look at every position, so they are open here and
    there; the others wait for one that is beyond, which should be in the prompt, behind it, or nowhere."""
    op = st.sampled_from(("add",) * 7 + OPERATIONS[1:])
    keeps = st.sampled_from((False,) * 5 + (True,))
    here_and_there, far = st.sampled_from((-0.8, 0.0, 0.8)), st.sampled_from((0.0, 1.0, 2.0, 3.0))
    either: st.SearchStrategy[Literal["token", "rest"]] = st.sampled_from(("token", "rest"))
    token = st.builds(Opening, number, st.booleans(), here_and_there, st.just("token"), stops=st.just(False))
    rest = st.builds(Opening, number, st.booleans(), far, st.just("rest"), stops=st.just(False))
    stop = st.builds(Opening, number, st.booleans(), far, either, stops=st.just(True))
    generation: st.SearchStrategy[Positions] = st.sampled_from(("all", "generation"))
    bare = st.builds(Change, number, _positions(), op, keeps, st.none())
    gated = st.builds(Change, number, _positions(), op, keeps, st.one_of(token, token, rest, stop))
    # Behind a latch only generated positions are edited.
    latched = st.builds(Change, number, generation, op, keeps, rest)
    return st.one_of(bare, gated, gated, latched)


def asks() -> st.SearchStrategy[Ask]:
    """One request of any kind."""
    number = st.integers(0, SHARED_DIRECTIONS + 1)
    change = _changes(number)
    # Of every second request all edits are sums, or hardly any two would ever be summed.
    plain = st.builds(Change, number, _positions(), st.just("add"), st.just(False), st.none())
    # Many probes of a request's own, so that columns change owners while chains that look at them stay loaded.
    probe = st.integers(0, SHARED_DIRECTIONS + 3)
    return st.builds(
        Ask,
        phase=st.integers(0, PHASES - 1),
        prefix=st.integers(0, len(PREFIXES) - 1),
        tail=st.integers(1, 25),
        follows=st.integers(-5, 13).map(lambda k: None if k < 0 else k),
        keeps=st.sampled_from(("nothing", "plan", "edits", "edits")),
        moved_to=_positions(),
        edits=st.one_of([st.one_of(st.tuples(c), st.lists(c, max_size=3).map(tuple)) for c in (plain, change)]),
        readouts=st.lists(probe, max_size=3).map(tuple),
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
        self._stream = [make.SINK, *self._tokens(0, max(PREFIXES) - 1)]

    def prompt(self, number: int, ask: Ask, begins: Sequence[int] | None) -> list[int]:
        """The prompt of request `number`; `begins` is the conversation that it goes on with, if any."""
        head = list(begins) if begins is not None else self._stream[: PREFIXES[ask.prefix]]
        return head + self._tokens(1 + number, ask.tail)

    def plan(self, number: int, ask: Ask, n_prompt: int, layout: EngineLayout) -> Plan:
        """The plan of request `number`, without the edits that its prompt or the engine has no room for."""
        readouts = tuple(Readout(f"probe {k}", self._rows("probe", k, number)) for k in ask.readouts)
        edits: list[Edit] = []
        for change in ask.edits:
            edit = self._edit(change, number)
            seen = readouts
            if edit.gate is not None and edit.gate.readout.digest not in {r.direction.digest for r in readouts}:
                seen = (*readouts, Readout(edit.gate.label, edit.gate.readout))
            try:
                resolve(Plan((*edits, edit), seen), n_prompt, layout)
            except BadRequest:
                continue
            edits.append(edit)
            readouts = seen
        return Plan(tuple(edits), readouts, ask.prompt_scores)

    def _edit(self, change: Change, number: int) -> Edit:
        k, op = change.direction, change.op
        rows, rng = self._rows("edit", k, number), self._rng(op, k, number)
        sign = float(rng.choice((-1.0, 1.0)))
        least, most, sign = {
            "add": (1.0, 3.0, sign),
            "ablate": (0.5, 1.5, 1.0),
            "set": (2.0, 8.0, sign),
            "cap": (0.5, 1.0, 1.0),
            "clamp": (1.0, 8.0, 1.0),
            "min_clamp": (1.0, 8.0, 1.0),
        }[op]
        bounds = (-float(rng.uniform(0.0, 2.0)), float(rng.uniform(0.0, 2.0)))
        return Edit(
            "inline",
            rows,
            {layer: sign * float(rng.uniform(least, most)) for layer in rows.layers},
            change.positions,
            op=op,
            source="inline",
            bounds=dict.fromkeys(rows.layers, bounds) if op == "cap" else {},
            reader=self._reader(k, number, rows) if op in OF_FEATURE else None,
            preserve_norm=change.preserve_norm,
            gate=None if change.gate is None else self._gate(change.gate, number, min(rows.layers)),
        )

    def _reader(self, k: int, number: int, feature: Direction) -> Reader:
        rng = self._rng("reader", k, number)
        rows = make.direction(rng, sorted(feature.layers)).layers
        encoder = Direction({layer: np.float32(READER_SCALE) * row for layer, row in rows.items()})
        return Reader(encoder, float(rng.normal()), float(abs(rng.normal())))

    def _gate(self, opening: Opening, number: int, first_edited: int) -> Gate:
        """Behind the readout of that number; of its first layer only, or of layer 0, where more would lie behind."""
        k = opening.readout
        rows, label = self._rows("probe", k, number), f"probe {k}"
        if opening.scope == "token" and not opening.stops and max(rows.layers) > first_edited:
            layer, row = min(rows.layers.items())
            rows, label = Direction({layer if layer <= first_edited else 0: row}), f"gate {k}"
        level = opening.far * math.sqrt(sum(SPREADS[layer] ** 2 for layer in rows.layers))
        return Gate(label, rows, opening.above, level if opening.above else -level, opening.scope, opening.stops)

    def _rows(self, kind: str, k: int, number: int) -> Direction:
        rng = self._rng(kind, k, number)
        return make.direction(rng, sorted(int(n) for n in rng.choice(4, size=rng.integers(1, 3), replace=False)))

    def _rng(self, kind: str, k: int, number: int) -> np.random.Generator:
        owner = 0 if k < SHARED_DIRECTIONS else 1 + number
        return np.random.default_rng([self._seed, *kind.encode(), k, owner])

    def _tokens(self, owner: int, n: int) -> list[int]:
        rng = np.random.default_rng([self._seed, owner])
        return [int(t) for t in rng.integers(1, VOCABULARY, size=n)]
