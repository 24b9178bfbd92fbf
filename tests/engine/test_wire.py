"""Plans on the wire: segments, shared rows, limits, cache keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_support import plans as make
from hypothesis import given
from hypothesis import strategies as st

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange, Positions
from pilothouse.core.errors import BadRequest
from pilothouse.core.messages import CacheSpan, plan_decoder, plan_encoder
from pilothouse.core.plans import END, Plan, resolve_positions, segments
from pilothouse.engine.prefix_cache import edit_keys
from pilothouse.engine.wire import largest_edit, resolve


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", (0, END)),
        ("prompt", (0, 6)),
        ("generation", (6, END)),
        ("last_prompt", (6, 7)),
        (PositionRange(1, 3), (1, 3)),
        (PositionRange(-2, 100), (5, 100)),
        (PositionRange(-100, 2), (0, 2)),
    ],
)
def test_positions_behind_a_prompt_of_seven(positions: Positions, expected: tuple[int, int]) -> None:
    assert resolve_positions(positions, 7) == expected


def test_prompt_and_generation_partition_the_sequence() -> None:
    for n_prompt in range(1, 9):
        assert resolve_positions("prompt", n_prompt)[1] == resolve_positions("generation", n_prompt)[0]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), max_size=5))
def test_segments_say_for_each_position_exactly_the_edits_that_cover_it(parts: list[tuple[int, int]]) -> None:
    spans = [(start, start + size) for start, size in parts]
    found = segments(spans)
    for position in range(32):
        covering = tuple(i for i, (start, stop) in enumerate(spans) if start <= position < stop)
        hits = [segment.active for segment in found if segment.start <= position < segment.stop]
        assert hits == ([covering] if covering else [])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=3), st.integers(1, 9), st.integers(0, 5))
def test_block_keys_differ_exactly_when_edited_offsets_differ(
    parts: list[tuple[int, int]], size: int, block: int
) -> None:
    spans = tuple(CacheSpan(start, start + length, bytes([i])) for i, (start, length) in enumerate(parts))
    start, end = block * size, (block + 1) * size
    keys = {digest: (first, last) for _, (digest, first, last) in edit_keys(spans, start, end)}
    for span in spans:
        offsets = [p - start for p in range(start, end) if span.start <= p < span.stop]
        assert keys.get(span.edit) == ((offsets[0], offsets[-1]) if offsets else None)


def test_a_plan_survives_the_wire() -> None:
    rng = np.random.default_rng(0)
    plan = Plan((make.edit(rng, [1], "all"), make.edit(rng, [2], "generation")), (make.readout(rng, [0]),))
    wire, spans = resolve(plan, 5, EngineLayout())
    assert plan_decoder.decode(plan_encoder.encode(wire)) == wire
    assert spans == [(0, END), (4, END)]
    assert wire.rows == ((0,), (0, 1))
    assert [(s.start, s.stop, s.row) for s in wire.spans] == [(0, 4, 0), (4, END, 1)]


def test_equal_content_shares_a_row_and_positions_do_not_matter_to_it() -> None:
    rng = np.random.default_rng(0)
    change = make.edit(rng, [1], "generation")
    later = replace(change, positions=PositionRange(3, 9))
    other = make.edit(rng, [1], "all")
    layout = EngineLayout()
    first, _ = resolve(Plan((change,)), 5, layout)
    second, _ = resolve(Plan((change,)), 50, layout)
    third, _ = resolve(Plan((other, later)), 50, layout)
    assert first.row_keys == second.row_keys
    assert len(set(third.row_keys)) == 2
    assert not set(first.row_keys) & set(third.row_keys)
    fourth, _ = resolve(Plan((other, replace(later, positions="all"), replace(other, positions="prompt"))), 50, layout)
    alone, _ = resolve(Plan((other,)), 50, layout)
    assert alone.row_keys[0] in third.row_keys
    assert len(set(fourth.row_keys)) == 2


def test_the_order_of_a_sum_is_part_of_its_key() -> None:
    rng = np.random.default_rng(0)
    one, other = make.edit(rng, [1], "all"), make.edit(rng, [1], "all")
    forward, _ = resolve(Plan((one, other)), 5, EngineLayout())
    backward, _ = resolve(Plan((other, one)), 5, EngineLayout())
    assert forward.row_keys != backward.row_keys


def test_a_plan_of_strength_zero_needs_no_row_and_no_key() -> None:
    wire, _ = resolve(Plan((make.edit(np.random.default_rng(0), [1], "all", 0.0),)), 5, EngineLayout())
    assert (wire.row_keys, wire.rows, wire.cache) == ((), (), ())


def test_an_empty_range_names_its_edit() -> None:
    plan = Plan((make.edit(np.random.default_rng(0), [1], PositionRange(-1, 2)),))
    with pytest.raises(BadRequest) as caught:
        resolve(plan, 10, EngineLayout())
    assert caught.value.param == "steering[0].positions"


def test_too_many_overlaps_and_too_many_probes_are_refused() -> None:
    rng = np.random.default_rng(0)
    edits = tuple(make.edit(rng, [1], PositionRange(i, 30 + i)) for i in range(4))
    with pytest.raises(BadRequest, match="overlap"):
        resolve(Plan(edits), 64, EngineLayout(rows_per_plan=4))
    readouts = tuple(make.readout(rng, [0]) for _ in range(3))
    with pytest.raises(BadRequest, match="probes"):
        resolve(Plan((), readouts), 5, EngineLayout(readouts=2))


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_edits_that_could_overflow_the_stream_together_are_refused(share: float) -> None:
    """An overflow would put NaN into cache blocks that other requests get next."""
    largest = largest_edit(64, float(np.finfo(np.float32).max))
    assert 64 * largest**2 < float(np.finfo(np.float32).max)
    assert largest_edit(64, 65504.0) < 65504.0
    row = Direction({1: np.ones(64, dtype=np.float32)})
    plan = Plan(tuple(Edit("v", row, {1: share * largest}, "all") for _ in range(2)))
    if share < 0.5:
        resolve(plan, 5, EngineLayout(), largest)
        return
    with pytest.raises(BadRequest, match="overflows") as caught:
        resolve(plan, 5, EngineLayout(), largest)
    assert caught.value.param == "steering"
