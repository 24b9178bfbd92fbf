"""What must hold of every operation whatever the numbers, on the module that the compiled graph is traced from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.edits import OPERATIONS, Edit, Operation, Reader
from pilothouse.engine.chains import ChainBank

D_MODEL = 12
LAYOUT = EngineLayout(rows=8, chains=2, chain_steps=4, readouts=2)
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)

seeds = st.integers(0, 2**32 - 1)
amounts = st.floats(-8, 8).map(lambda x: float(np.float32(x)))


def make(rng: np.random.Generator, op: Operation, value: float, *, preserve_norm: bool = False) -> Edit:
    rows = [Direction({0: rng.normal(size=D_MODEL).astype(np.float32)}) for _ in range(2)]
    reads = op in ("clamp", "min_clamp")
    return Edit(
        "v",
        rows[0],
        {0: value},
        "all",
        op=op,
        bounds={0: (-0.5, 0.75)} if op == "cap" else {},
        reader=Reader(rows[1], float(rng.normal()), abs(float(rng.normal()))) if reads else None,
        preserve_norm=preserve_norm,
    )


def apply(edits: Sequence[Edit], streams: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """`streams` [n, d_model] after the edits, one after another."""
    bank = ChainBank(LAYOUT, D_MODEL, torch.float32, torch.device("cpu"))
    for k, edit in enumerate(edits):
        reader = (edit.reader or edit).direction.layers[0]
        rows = torch.from_numpy(reader.copy()), torch.from_numpy(edit.direction.layers[0].copy())
        bank.load(1, k, edit.rule(0), *rows, preserve_norm=edit.preserve_norm, gate=None)
    n = len(streams)
    gains = torch.zeros(n, LAYOUT.chain_steps)
    gains[:, : len(edits)] = gain
    return streams + bank.change(streams, torch.ones(n, dtype=torch.int64), gains, torch.zeros(n, LAYOUT.readouts))


def some_streams(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(5, D_MODEL)).astype(np.float32) * 3)


def activation(edit: Edit, streams: torch.Tensor) -> torch.Tensor:
    assert edit.reader is not None
    seen = streams @ torch.from_numpy(edit.reader.direction.layers[0].copy()) + edit.reader.bias
    return torch.where(seen > edit.reader.threshold, seen, 0.0)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(OPERATIONS), amounts, st.booleans())
def test_a_step_that_does_not_act_changes_no_bit(seed: int, op: Operation, value: float, preserve_norm: bool) -> None:
    rng = np.random.default_rng(seed)
    streams = some_streams(rng)
    edit = make(rng, op, value, preserve_norm=preserve_norm)
    assert torch.equal(apply([edit], streams, gain=0.0), streams)
    bank = ChainBank(LAYOUT, D_MODEL, torch.float32, torch.device("cpu"))
    nothing = torch.zeros(len(streams), dtype=torch.int64)
    full, scores = torch.ones(len(streams), LAYOUT.chain_steps), torch.full((len(streams), LAYOUT.readouts), 7.0)
    assert not bank.change(streams, nothing, full, scores).any(), "chain 0 is not the identity"


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["add", "ablate", "cap"]), st.booleans())
def test_strength_zero_is_the_identity(seed: int, op: Operation, preserve_norm: bool) -> None:
    rng = np.random.default_rng(seed)
    streams = some_streams(rng)
    edit = make(rng, op, 0.0, preserve_norm=preserve_norm)
    assert edit.is_identity()
    close(apply([edit], streams), streams)


@settings(max_examples=60, deadline=None)
@given(seeds, amounts, amounts)
def test_adding_is_linear_in_strength(seed: int, one: float, two: float) -> None:
    rng = np.random.default_rng(seed)
    streams, edit = some_streams(rng), make(rng, "add", one)
    twice = apply([edit, Edit("v", edit.direction, {0: two}, "all")], streams)
    whole = apply([Edit("v", edit.direction, {0: one + two}, "all")], streams)
    close(twice, whole)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["ablate", "set", "cap"]), st.booleans())
def test_taking_a_component_twice_is_taking_it_once(seed: int, op: Operation, zero: bool) -> None:
    rng = np.random.default_rng(seed)
    streams, edit = some_streams(rng), make(rng, op, 1.0)
    once, twice = apply([edit], streams), apply([edit, edit], streams)
    close(twice, once)
    row = torch.from_numpy(edit.direction.layers[0].copy())
    component = once @ row / row.norm()
    low, high = {"ablate": (0.0, 0.0), "set": (1.0, 1.0), "cap": (-0.5, 0.75)}[op]
    assert bool(((component >= low - 1e-4) & (component <= high + 1e-4)).all())
    # Whatever is orthogonal to the direction stays.
    close(
        once - torch.outer(component, row / row.norm()),
        streams - torch.outer(streams @ row / row.norm(), row / row.norm()),
    )


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_clamping_a_feature_to_its_own_value_is_the_identity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    streams, edit = some_streams(rng), make(rng, "clamp", 0.0)
    for stream, value in zip(streams, activation(edit, streams), strict=True):
        own = Edit("v", edit.direction, {0: float(value)}, "all", op="clamp", reader=edit.reader)
        close(apply([own], stream[None]), stream[None])


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 8))
def test_a_feature_is_only_ever_raised_by_a_min_clamp(seed: int, value: float) -> None:
    rng = np.random.default_rng(seed)
    streams, edit = some_streams(rng), make(rng, "min_clamp", value)
    active = activation(edit, streams)
    moved = (apply([edit], streams) - streams) @ torch.from_numpy(edit.direction.layers[0].copy())
    expected = (value - active).clamp_min(0) * float(np.square(edit.direction.layers[0]).sum())
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(OPERATIONS), amounts)
def test_preserve_norm_keeps_the_length_and_the_direction_that_the_edit_gave(
    seed: int, op: Operation, value: float
) -> None:
    rng = np.random.default_rng(seed)
    streams = some_streams(rng)
    edit = make(rng, op, abs(value) / 4 if op in ("ablate", "cap") else value, preserve_norm=True)
    bare = Edit(**{**vars(edit), "preserve_norm": False})
    kept, free = apply([edit], streams), apply([bare], streams)
    close(kept.norm(dim=1), streams.norm(dim=1))
    cosines = torch.nn.functional.cosine_similarity(kept, free)
    close(cosines, torch.ones_like(cosines))


@pytest.mark.parametrize("preserve_norm", [False, True])
def test_each_edit_sees_the_one_before(preserve_norm: bool) -> None:
    rng = np.random.default_rng(0)
    streams = some_streams(rng)
    edits = [make(rng, op, 1.5, preserve_norm=preserve_norm) for op in ("set", "clamp", "ablate", "cap")]
    one_by_one = streams
    for edit in edits:
        one_by_one = apply([edit], one_by_one)
    close(apply(edits, streams), one_by_one)
    backwards = apply(edits[::-1], streams)
    assert not torch.allclose(backwards, one_by_one, atol=0.1), "the order does not show, so nothing is shown"
