"""Bugs put into a running engine on purpose: a fuzzer that does not find them is not worth running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pilothouse.core.edits import Edit
from pilothouse.core.messages import (
    ChainLoad,
    LiveReadings,
    RequestOrders,
    RowLoad,
    StepCost,
    StepOrders,
    StepReadings,
    WirePlan,
)
from pilothouse.core.plans import END, edit_spans
from pilothouse.core.sites import Float32
from pilothouse.engine import holdings, prefix_cache, wire
from pilothouse.engine import scheduler as scheduler_module
from pilothouse.engine.board import Board
from pilothouse.engine.chains import ChainBank
from pilothouse.engine.latches import Latches
from pilothouse.engine.listener import Listener
from pilothouse.engine.runs import Live, Run
from pilothouse.engine.scheduler import SteeringScheduler
from pilothouse.engine.score_store import ScoreStore
from pilothouse.engine.spans import Ints, SpanTable, Taken

Plant = Callable[[pytest.MonkeyPatch], None]


def rows_of_the_neighbour(patch: pytest.MonkeyPatch) -> None:
    """The row map is off by one request."""
    right = SpanTable.lines

    def lines(table: SpanTable, request_ids: Sequence[str]) -> Ints:
        return np.roll(right(table, request_ids), 1)

    patch.setattr(SpanTable, "lines", lines)


def a_request_that_takes_what_its_first_token_takes(patch: pytest.MonkeyPatch) -> None:
    """Within a step, what a request passes is not looked at."""
    right = SpanTable.taken

    def taken(table: SpanTable, lines: Ints, counts: Ints, computed: Ints) -> tuple[Taken, int]:
        found, near = right(table, lines, np.ones_like(counts), computed)
        return found.repeated(counts), near

    patch.setattr(SpanTable, "taken", taken)


def scores_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    """Scores are off by one position."""
    right = Listener.hear

    def hear(listener: Listener, readings: StepReadings, rejected: Mapping[str, int]) -> None:
        right(listener, replace(readings, scores=np.roll(readings.scores, -1, axis=0)), rejected)

    patch.setattr(Listener, "hear", hear)


def readings_of_the_neighbour(patch: pytest.MonkeyPatch) -> None:
    """Who is told of each step at once is told what was read of another."""
    right = Live.told

    def told(live: Live, run: Run, cost: StepCost) -> LiveReadings:
        found = right(live, run, cost)
        return msgspec.structs.replace(found, request_ids=(*found.request_ids[1:], found.request_ids[0]))

    patch.setattr(Live, "told", told)


def a_run_that_is_read_from_its_second_step(patch: pytest.MonkeyPatch) -> None:
    """Readings that wait are a step too late."""
    right = Run.read

    def read(run: Run, k: int, begin: int, end: int | None) -> Float32:
        return np.roll(right(run, k, begin, end), -1, axis=0)

    patch.setattr(Run, "read", read)


def unsalted_blocks(patch: pytest.MonkeyPatch) -> None:
    """Edited blocks have the keys of plain ones."""
    patch.setattr(prefix_cache, "edit_keys", lambda spans, start, end: ())


def keys_without_offsets(patch: pytest.MonkeyPatch) -> None:
    """Keys of edited blocks say which edit, not which positions."""
    right = prefix_cache.edit_keys

    def edit_keys(spans: Any, start: int, end: int) -> tuple[Any, ...]:
        return tuple((tag, digest) for tag, (digest, *_) in right(spans, start, end))

    patch.setattr(prefix_cache, "edit_keys", edit_keys)


def a_dropped_edit(patch: pytest.MonkeyPatch) -> None:
    """Where several edits are summed, the last is left out."""
    right = Board._load_row

    def load_row(board: Board, load: RowLoad) -> None:
        right(board, RowLoad(load.row, load.edits[:1] + load.edits[1:-1]))

    patch.setattr(Board, "_load_row", load_row)


def spans_of_a_shorter_prompt(patch: pytest.MonkeyPatch) -> None:
    """Positions are counted from the step's own first token, not from the sequence's: wrong behind a cached prefix."""
    right = Board.map_tokens

    def map_tokens(board: Board, request_ids: Sequence[str], counts: Ints, computed: Ints) -> None:
        right(board, request_ids, counts, np.where(counts > 1, 0, computed))

    patch.setattr(Board, "map_tokens", map_tokens)


def a_slot_that_is_never_given_back(patch: pytest.MonkeyPatch) -> None:
    """A request that is aborted while it runs keeps its slot and columns."""
    right = SteeringScheduler._free_request

    def free_request(scheduler: SteeringScheduler, request: Any, *args: Any, **kwargs: Any) -> Any:
        if str(request.status) == "FINISHED_ABORTED":
            scheduler._held.pop(request.request_id, None)
        return right(scheduler, request, *args, **kwargs)

    patch.setattr(SteeringScheduler, "_free_request", free_request)


def a_line_that_stays_with_the_worker(patch: pytest.MonkeyPatch) -> None:
    """The worker is not told of requests that are over."""
    patch.setattr(SpanTable, "remove", lambda table, request_id: None)


def kept_scores_of_another_probe(patch: pytest.MonkeyPatch) -> None:
    """Scores kept beside cached blocks do not say which probe they are of."""
    right = ScoreStore.put, ScoreStore.take, ScoreStore.covered

    def put(store: ScoreStore, block: bytes, probes: Sequence[bytes], rows: Any) -> None:
        right[0](store, block, [b""] * len(probes), rows)

    def take(store: ScoreStore, blocks: Sequence[bytes], probes: Sequence[bytes]) -> Any:
        return right[1](store, blocks, [b""] * len(probes))

    def covered(store: ScoreStore, blocks: Sequence[bytes], probes: Sequence[bytes]) -> int:
        return right[2](store, blocks, [b""] * len(probes))

    patch.setattr(ScoreStore, "put", put)
    patch.setattr(ScoreStore, "take", take)
    patch.setattr(ScoreStore, "covered", covered)


def prompt_scores_without_those_that_were_kept(patch: pytest.MonkeyPatch) -> None:
    """A request that wants prompt scores takes any cached block, scores or not."""
    patch.setattr(ScoreStore, "covered", lambda store, blocks, probes: len(blocks))
    patch.setattr(ScoreStore, "take", lambda store, blocks, probes: np.zeros((0, len(probes)), dtype=np.float32))


def a_latch_that_lasts_one_step(patch: pytest.MonkeyPatch) -> None:
    """A latch is not carried from one step to the next."""
    right = Latches.close_gains

    def close_gains(latches: Latches, gains: torch.Tensor, lines: Ints, counts: Ints, computed: Ints) -> None:
        latches.first[latches.signs != 0] = END
        right(latches, gains, lines, counts, computed)

    patch.setattr(Latches, "close_gains", close_gains)


def a_latch_that_looks_at_another_column(patch: pytest.MonkeyPatch) -> None:
    """A latch looks at the column beside its own."""
    right = Latches.set

    def set_latch(latches: Latches, line: int, orders: RequestOrders) -> None:
        right(
            latches, line, msgspec.structs.replace(orders, columns=tuple((column + 1) % 4 for column in orders.columns))
        )

    patch.setattr(Latches, "set", set_latch)


def a_gate_that_looks_at_another_column(patch: pytest.MonkeyPatch) -> None:
    """A gate of scope token looks at the column beside its own."""
    right = ChainBank.load

    def load(bank: ChainBank, *args: Any, preserve_norm: bool, gate: tuple[int, bool, float] | None) -> None:
        moved = None if gate is None else ((gate[0] + 1) % 4, *gate[1:])
        right(bank, *args, preserve_norm=preserve_norm, gate=moved)

    patch.setattr(ChainBank, "load", load)


def a_chain_that_keeps_an_old_column(patch: pytest.MonkeyPatch) -> None:
    """A chain that is loaded already is used again though its gates' columns have gone to other requests' probes."""
    patch.setattr(scheduler_module, "_chain_keys", lambda plan, columns: [plan.chain] if plan.chain else [])


def norms_that_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    """preserve_norm is ignored."""
    right = ChainBank.load

    def load(bank: ChainBank, *args: Any, preserve_norm: bool, gate: Any) -> None:
        right(bank, *args, preserve_norm=False, gate=gate)

    patch.setattr(ChainBank, "load", load)


def a_gate_that_is_open_at_the_first_position(patch: pytest.MonkeyPatch) -> None:
    """A gate of scope token looks at position 0 too."""

    def spans(edits: Sequence[Edit], n_prompt: int) -> list[tuple[int, int]]:
        bare = [edit if edit.gate is None or edit.gate.latched else replace(edit, gate=None) for edit in edits]
        return edit_spans(bare, n_prompt)

    patch.setattr(wire, "edit_spans", spans)


def a_latch_that_sees_the_first_position(patch: pytest.MonkeyPatch) -> None:
    """A latch is met by what is read at position 0."""
    right = Latches.update

    def update(latches: Latches, scores: torch.Tensor) -> None:
        if latches._lines is not None:
            # Its readout counts as that of position 1, which is looked at; latches open behind the prompt anyway.
            latches._positions = torch.where(latches._positions == 0, 1, latches._positions)
        right(latches, scores)

    patch.setattr(Latches, "update", update)


def a_chain_from_its_end(patch: pytest.MonkeyPatch) -> None:
    """The steps of a chain are made in reverse order."""
    right = Board.obey

    def obey(board: Board, orders: StepOrders) -> None:
        chains = tuple(ChainLoad(load.chain, load.steps[::-1], load.columns[::-1]) for load in orders.chains)
        requests = {
            name: msgspec.structs.replace(request, steps=request.steps[::-1])
            for name, request in orders.requests.items()
        }
        right(board, msgspec.structs.replace(orders, chains=chains, requests=requests))

    patch.setattr(Board, "obey", obey)


def a_latch_behind_a_cached_prefix(patch: pytest.MonkeyPatch) -> None:
    """A request with a latch may begin behind blocks of the prefix cache."""
    patch.setattr(WirePlan, "latched", False)


def a_stop_that_comes_late(patch: pytest.MonkeyPatch) -> None:
    """A gate that stops lets one more token through."""
    right = holdings.Held.look

    def look(held: Any, start: int, rows: Any) -> None:
        before = held.stop_at
        right(held, start, rows)
        held.stop_at += held.stop_at != before

    patch.setattr(holdings.Held, "look", look)


def a_chain_that_is_never_given_back(patch: pytest.MonkeyPatch) -> None:
    """A request that is over keeps its chain."""
    right = SteeringScheduler._let_go

    def let_go(steering: SteeringScheduler, held: Any) -> None:
        right(steering, replace(held, chain_key=b""))

    patch.setattr(SteeringScheduler, "_let_go", let_go)


def a_latch_that_outlives_its_request(patch: pytest.MonkeyPatch) -> None:
    """The latches of a request that is over stay with its line."""
    patch.setattr(Latches, "clear", lambda latches, line: None)


PLANTS: tuple[Plant, ...] = (
    rows_of_the_neighbour,
    a_request_that_takes_what_its_first_token_takes,
    scores_of_the_next_position,
    readings_of_the_neighbour,
    a_run_that_is_read_from_its_second_step,
    unsalted_blocks,
    keys_without_offsets,
    a_dropped_edit,
    spans_of_a_shorter_prompt,
    a_slot_that_is_never_given_back,
    a_line_that_stays_with_the_worker,
    kept_scores_of_another_probe,
    prompt_scores_without_those_that_were_kept,
    a_latch_that_lasts_one_step,
    a_latch_that_looks_at_another_column,
    norms_that_are_not_kept,
    a_chain_from_its_end,
    a_latch_behind_a_cached_prefix,
    a_stop_that_comes_late,
    a_chain_that_is_never_given_back,
    a_latch_that_outlives_its_request,
)

RARE_PLANTS: tuple[Plant, ...] = (
    a_gate_that_looks_at_another_column,
    a_chain_that_keeps_an_old_column,
    a_gate_that_is_open_at_the_first_position,
    a_latch_that_sees_the_first_position,
)
"""It takes dozens of scenarios until one of these shows."""
