"""Bugs put into a running engine on purpose: a fuzzer that does not find them is not worth running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pilothouse.core.messages import SlotLoad, StepReadings
from pilothouse.engine import prefix_cache
from pilothouse.engine.board import Board
from pilothouse.engine.scheduler import SteeringScheduler
from pilothouse.engine.score_store import ScoreStore
from pilothouse.engine.spans import Ints, SpanTable

Plant = Callable[[pytest.MonkeyPatch], None]


def rows_of_the_neighbour(patch: pytest.MonkeyPatch) -> None:
    """The row map is off by one request."""
    right = SpanTable.lines

    def lines(table: SpanTable, request_ids: Sequence[str]) -> Ints:
        return np.roll(right(table, request_ids), 1)

    patch.setattr(SpanTable, "lines", lines)


def scores_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    """Scores are off by one position."""
    right = SteeringScheduler._buffer

    def buffer(scheduler: SteeringScheduler, readings: StepReadings) -> None:
        right(scheduler, replace(readings, scores=np.roll(readings.scores, -1, axis=0)))

    patch.setattr(SteeringScheduler, "_buffer", buffer)


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
    right = Board._load_slot

    def load_slot(board: Board, load: SlotLoad) -> None:
        right(board, SlotLoad(load.slot, tuple(row[:1] + row[1:-1] for row in load.rows)))

    patch.setattr(Board, "_load_slot", load_slot)


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


PLANTS: tuple[Plant, ...] = (
    rows_of_the_neighbour,
    scores_of_the_next_position,
    unsalted_blocks,
    keys_without_offsets,
    a_dropped_edit,
    spans_of_a_shorter_prompt,
    a_slot_that_is_never_given_back,
    a_line_that_stays_with_the_worker,
    kept_scores_of_another_probe,
    prompt_scores_without_those_that_were_kept,
)
