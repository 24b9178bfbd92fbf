"""Row maps, slots and readings of the worker against slow, obvious computations."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.messages import (
    ReadoutLoad,
    RequestOrders,
    RowLoad,
    StepOrders,
    StepReadings,
    WireEdit,
    WireSpan,
    WireStep,
)
from pilothouse.engine.batch import Batch
from pilothouse.engine.board import Board
from pilothouse.engine.runs import Run, Stretches
from pilothouse.engine.sites import Site, StepBuffers
from pilothouse.engine.spans import Ints

LAYOUT = EngineLayout(rows=6, rows_per_plan=2, readouts=2)
D_MODEL = 4


def rows_of(number: int) -> tuple[int, int]:
    """The rows of the banks for the two rows of plan `number`; some plans have them in common."""
    return 1 + number % 3, 4 + number % 2


def make_board() -> Board:
    buffers = StepBuffers(64, LAYOUT, torch.device("cpu"))
    sites = {layer: Site(buffers, LAYOUT, D_MODEL, torch.float32, first=layer == 0) for layer in range(2)}
    return Board(LAYOUT, buffers, sites)


spans = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5), st.integers(0, 1)), max_size=3).map(
    lambda parts: tuple(
        WireSpan(start, start + size, row)
        for i, (start, size, row) in enumerate(parts)
        if all(start >= s + n or s >= start + size for s, n, _ in parts[:i])
    )
)
Planned = tuple[tuple[WireSpan, ...], int, list[tuple[int, int]]]
steps = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), max_size=LAYOUT.chain_steps)
plans = st.tuples(spans, st.integers(0, 12), steps)


def orders_of(number: int, plan: Planned) -> RequestOrders:
    spans, read_from, acts = plan
    chain = tuple(WireStep(b"v", b"", {}, False, None, start, start + size) for start, size in acts)
    return RequestOrders(rows_of(number), spans, (0, 1), read_from, 1 if chain else 0, chain)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 14), st.integers(1, 6), st.one_of(st.none(), plans)),
        min_size=1,
        max_size=6,
    )
)
def test_every_token_gets_its_own_row_and_steps_and_every_score_its_own_position(
    batch: list[tuple[int, int, Planned | None]],
) -> None:
    board = make_board()
    orders = {f"r{i}": orders_of(i, plan) for i, (_, _, plan) in enumerate(batch) if plan}
    board.obey(StepOrders(requests=orders))
    computed = np.array([start for start, _, _ in batch])
    counts = np.array([count for _, count, _ in batch])
    board.map_tokens([f"r{i}" for i in range(len(batch))], counts, computed)
    n_tokens = int(counts.sum())
    board.buffers.scores[:n_tokens, 0] = torch.arange(n_tokens, dtype=torch.float32)
    expected_rows, expected_scores, expected_gains = list[int](), list[float](), list[list[float]]()
    edited = 0
    for i, (start, count, plan) in enumerate(batch):
        spans, read_from, acts = plan or ((), 99, [])
        for position in range(start, start + count):
            if position >= read_from:
                expected_scores.append(float(len(expected_rows)))
            hit = [span for span in spans if span.start <= position < span.stop]
            expected_rows.append(rows_of(i)[hit[0].row] if hit else 0)
            gains = [float(first <= position < first + size) for first, size in acts]
            expected_gains.append(gains + [0.0] * (LAYOUT.chain_steps - len(gains)))
            edited += bool(hit or any(gains))
    assert board.buffers.rows[:n_tokens].tolist() == expected_rows
    assert board.buffers.gains[:n_tokens].tolist() == expected_gains
    chains = [int(bool(plan and plan[2])) for _, count, plan in batch for _ in range(count)]
    assert board.buffers.chains[:n_tokens].tolist() == chains
    readings = board.readings()
    if not orders:
        assert readings is None
        return
    assert isinstance(readings, StepReadings)
    assert readings.request_ids == list(orders)
    assert readings.scores[:, :1].ravel().tolist() == expected_scores
    assert readings.edited.sum() == edited


events = st.lists(
    st.tuples(st.sampled_from(["decode", "decode", "decode", "prefill", "end", "begin"]), st.integers(0, 3), plans),
    min_size=4,
    max_size=24,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(plans, min_size=1, max_size=3), events)
def test_a_batch_that_goes_on_is_as_if_it_had_been_mapped_anew(
    first: list[Planned],
    happenings: list[tuple[str, int, Planned]],
) -> None:
    boards = make_board(), make_board()
    live = {f"r{i}": 0 for i in range(len(first))}
    known: dict[Board, Stretches] = {}
    for board in boards:
        board.obey(StepOrders(requests={f"r{i}": orders_of(i, plan) for i, plan in enumerate(first)}))
    began = len(first)
    for number, (what, which, plan) in enumerate(happenings):
        orders = None
        counts = np.ones(len(live), dtype=np.int64)
        if what == "begin" or not live:
            name, began = f"r{began}", began + 1
            live[name] = 0
            counts = np.append(counts, 1 + which)
            orders = StepOrders(requests={name: orders_of(began, plan)}) if which else None
        elif what == "end":
            gone = sorted(live)[which % len(live)]
            del live[gone]
            counts = counts[1:]
            orders = StepOrders(retire=(gone,))
        elif what == "prefill":
            counts[which % len(live)] += which
        if not live:
            continue
        computed = np.array(list(live.values()), dtype=np.int64)
        seen: list[list[Any]] = []
        for board in boards:
            if orders is not None:
                board.obey(orders)
            if board is boards[1]:
                board._last = None
            board.map_tokens(list(live), counts, computed.copy())
            board.buffers.scores.copy_(torch.arange(128.0).reshape(64, 2) + 1000 * number)
            readings = board.readings()
            buffers = board.buffers
            seen.append([buffers.rows.tolist(), buffers.chains.tolist(), buffers.gains.tolist()])
            if readings is None:
                continue
            # As the scheduler gets it: a batch that goes on is not described again.
            arrived = pickle.loads(pickle.dumps(readings))
            if isinstance(arrived, tuple):
                batch, advanced, scores, prepare, read = arrived
                assert min(prepare, read) > 0.0
            else:
                known[board], advanced = Stretches(arrived, {}), arrived.advanced
                batch, scores = arrived.batch, arrived.scores.tobytes()
            run = Run(known[board], advanced)
            assert run.of.batch == batch
            run.scores.append(scores)
            for k, name in enumerate(run.of.request_ids):
                edited = [run.of.n_edited(k, n) for n in range(run.of.counts[k] + 1)]
                start, read_from = run.of.starts[k] + advanced, run.of.firsts[k] + advanced
                seen[-1].append([name, start, edited, read_from, run.read(k, 0, None).tolist()])
        assert seen[0] == seen[1]
        for name, count in zip(list(live), counts, strict=True):
            live[name] += int(count)


def test_decoding_maps_its_batch_once_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    board = make_board()
    spans = (WireSpan(0, 20, 0), WireSpan(20, 99, 1))
    board.obey(StepOrders(requests={"a": RequestOrders((1, 2), spans, (0,), 0), "b": RequestOrders((), (), (1,), 0)}))
    mapped: list[int] = []
    real = board._mapped

    def noted(request_ids: Sequence[str], counts: Ints, computed: Ints) -> Batch | None:
        mapped.append(int(computed[0]))
        return real(request_ids, counts, computed)

    monkeypatch.setattr(board, "_mapped", noted)
    described: list[int] = []
    for position in range(10, 40):
        board.map_tokens(["a", "b"], np.array([1, 1]), np.array([position, position + 5]))
        readings = board.readings()
        assert readings is not None
        if isinstance(readings, tuple):
            assert readings[1] == position - described[-1]
            continue
        described.append(position)
        assert readings.starts.tolist() == [position, position + 5]
    assert mapped == described == [10, 20]


def test_stages_hand_their_readouts_on_and_nothing_of_an_earlier_step() -> None:
    stages = []
    for layer in range(2):
        buffers = StepBuffers(64, LAYOUT, torch.device("cpu"))
        site = Site(buffers, LAYOUT, D_MODEL, torch.float32, first=layer == 0)
        stages.append((Board(LAYOUT, buffers, {layer: site}), site))
    probe = Direction({layer: np.full(D_MODEL, layer + 1, np.float32) for layer in range(2)})
    load = ReadoutLoad(1, probe.digest)
    orders = StepOrders(
        directions={probe.digest: probe.payload}, readouts=(load,), requests={"a": RequestOrders((), (), (1,), 0)}
    )
    for board, _ in stages:
        board.obey(orders)
    (first, first_site), (last, last_site) = stages
    for step in range(3):
        n_tokens = 5 - step
        for board, _ in stages:
            board.map_tokens(["a"], np.array([n_tokens]), np.array([10 * step]))
        stream = torch.arange(n_tokens * D_MODEL, dtype=torch.float32).reshape(n_tokens, D_MODEL)
        first_site.read(stream)
        handed = first.hand_on()
        assert handed is not None
        assert first.readings() is None, "the first stage reports nothing"
        last.take_over(handed)
        last_site.read(10 * stream)
        readings = last.readings()
        assert readings is not None
        # Batches of one token each go on.
        scores = readings[2] if isinstance(readings, tuple) else readings.scores.tobytes()
        read = np.frombuffer(scores, np.float32).reshape(-1, LAYOUT.readouts)
        assert read[:, 1].tolist() == [float(21 * row.sum()) for row in stream]
    first.obey(StepOrders(retire=("a",)))
    first.map_tokens(["b"], np.array([2]), np.array([0]))
    assert first.hand_on() is None
    last.take_over(None)
    assert not last.buffers.scores.any()


def test_more_spans_or_steps_than_there_is_room_for_are_an_error() -> None:
    board = make_board()
    spans = tuple(WireSpan(k, k + 1, 0) for k in range(2 * LAYOUT.rows_per_plan + 1))
    steps = tuple(WireStep(b"v", b"", {}, False, None, 0, 9) for _ in range(LAYOUT.chain_steps + 1))
    for orders in (RequestOrders((1,), spans, (), 0), RequestOrders((), (), (), 0, 1, steps)):
        with pytest.raises(ValueError, match="broadcast"):
            board.obey(StepOrders(requests={"a": orders}))


def test_rows_of_an_earlier_longer_batch_do_not_linger() -> None:
    board = make_board()
    board.obey(StepOrders(requests={"a": RequestOrders((1,), (WireSpan(0, 99, 0),), (), 0)}))
    board.map_tokens(["a"], np.array([10]), np.array([0]))
    assert board.buffers.rows[:10].count_nonzero() == 10
    board.map_tokens(["a"], np.array([1]), np.array([10]))
    assert board.buffers.rows.count_nonzero() == 1
    board.obey(StepOrders(retire=("a",)))
    board.map_tokens(["b"], np.array([1]), np.array([0]))
    assert board.buffers.rows.count_nonzero() == 0


def test_a_row_holds_the_sum_of_its_edits_and_nothing_of_the_last_tenant() -> None:
    board = make_board()
    one = Direction({0: np.ones(D_MODEL, np.float32), 1: np.ones(D_MODEL, np.float32)})
    two = Direction({0: np.full(D_MODEL, 10, np.float32)})
    store = {d.digest: d.payload for d in (one, two)}
    both = (WireEdit(one.digest, {0: 2.0, 1: 3.0}), WireEdit(two.digest, {0: 1.0}))
    board.obey(StepOrders(directions=store, rows=(RowLoad(3, both), RowLoad(4, both[:1]))))
    first, second = board.sites[0].edits, board.sites[1].edits
    assert [first[3].tolist(), second[3].tolist()] == [[12.0] * D_MODEL, [3.0] * D_MODEL]
    assert [first[4].tolist(), second[4].tolist()] == [[2.0] * D_MODEL, [3.0] * D_MODEL]
    board.obey(StepOrders(rows=(RowLoad(3, both[1:]),)))
    assert first[3].tolist() == [10.0] * D_MODEL
    assert second[3].count_nonzero() == 0
    assert first[4].tolist() == [2.0] * D_MODEL
    assert first.count_nonzero() == 2 * D_MODEL


def test_a_readout_column_is_cleared_where_the_new_probe_has_no_weights() -> None:
    board = make_board()
    wide = Direction({0: np.ones(D_MODEL, np.float32), 1: np.ones(D_MODEL, np.float32)})
    narrow = Direction({1: np.full(D_MODEL, 2, np.float32)})
    board.obey(StepOrders(directions={wide.digest: wide.payload}, readouts=(ReadoutLoad(1, wide.digest),)))
    board.obey(StepOrders(directions={narrow.digest: narrow.payload}, readouts=(ReadoutLoad(1, narrow.digest),)))
    assert board.sites[0].readouts.count_nonzero() == 0
    assert board.sites[1].readouts[1].tolist() == [2.0] * D_MODEL


def test_every_step_with_a_plan_is_counted_once_with_the_time_that_it_took() -> None:
    board = make_board()
    board.obey(StepOrders(requests={"r0": RequestOrders((1,), (WireSpan(0, 9, 0),), (0, 1), 0)}))
    found = []
    for request, start in (("r0", 0), ("plain", 0), ("r0", 3)):
        board.map_tokens([request], np.array([3]), np.array([start]))
        found.append(board.readings())
    with_plan, plain, again = found
    assert plain is None
    assert isinstance(with_plan, StepReadings)
    assert isinstance(again, StepReadings)
    for readings in (with_plan, again):
        assert readings.cost.steps == 1
        assert 0.0 < readings.cost.prepare < 1.0
        assert 0.0 < readings.cost.read < 1.0
