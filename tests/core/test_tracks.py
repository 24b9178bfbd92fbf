"""Tracks against a dictionary from position to row, and runs against sets of positions."""

from __future__ import annotations

import weakref

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pilothouse.core.messages import Reading
from pilothouse.core.tracks import ChoiceTrack, Runs, Wave

runs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=12)


kinds = st.sampled_from(["reading", "one by one", "one by one, unread"])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), kinds)), st.integers(0, 70), st.integers(0, 90))
def test_scores_and_positions_are_kept_by_absolute_position(
    parts: list[tuple[int, int, str]], start: int, stop: int
) -> None:
    track, expected, forwarded, value = ChoiceTrack(5, 2), dict[int, list[float]](), set[int](), 0.0
    for first, count, kind in parts:
        rows = np.arange(value, value + 2 * count, dtype=np.float32).reshape(count, 2)
        value += 2 * count
        forwarded.update(range(first, first + count))
        if kind != "one by one, unread":
            expected.update({first + i: rows[i].tolist() for i in range(count)})
        if kind == "reading":
            track.add(Reading(((first, count, 0),), ((first, count),), rows.tobytes()))
        else:
            for i in range(count):
                track.add_position(first + i, 1, (Wave(rows), i) if kind == "one by one" else None)
    found = track.scores(start, stop)
    assert len(found) == max(stop - start, 0)
    for position, row in zip(range(start, stop), found.tolist(), strict=True):
        assert row == expected[position] if position in expected else np.isnan(row).all()
    asked = set(range(start, stop))
    assert track.scored.count(start, stop) == len(expected.keys() & asked)
    assert track.count_forwarded(start, stop) == len(forwarded & asked)
    assert track.first_forwarded == min(forwarded, default=5)
    assert track.edited_reported == sum(count for _, count, kind in parts if kind != "reading")


def test_rows_of_other_sequences_are_let_go() -> None:
    track = ChoiceTrack(1, 1)
    tables = [np.zeros((256, 1), dtype=np.float32) for _ in range(100)]
    kept = [weakref.ref(table) for table in tables]
    for position in range(100):
        track.add_position(position, 0, (Wave(tables[position]), 7))
    del tables
    assert sum(table() is not None for table in kept) < 32
    assert track.scored.count(0, 100) == 100


def test_what_was_forwarded_and_what_was_scored_are_told_apart() -> None:
    track = ChoiceTrack(4, 1)
    not_a_number = np.full((2, 1), np.nan, dtype=np.float32)
    track.add(Reading(((2, 3, 0),), ((3, 2),), not_a_number.tobytes()))
    assert [track.scored.count(p, p + 1) for p in range(6)] == [0, 0, 0, 1, 1, 0]
    assert np.isnan(track.scores(0, 6)).all()
    track.add(Reading((), ((0, 2),), np.zeros((2, 1), dtype=np.float32).tobytes()))
    assert (track.first_forwarded, track.count_forwarded(0, 6), track.scored.count(0, 6)) == (2, 3, 4)


def test_a_score_that_is_announced_but_not_sent_was_not_taken() -> None:
    track = ChoiceTrack(4, 1)
    track.add(Reading(((0, 3, 0),), ((0, 3),), np.zeros((2, 1), dtype=np.float32).tobytes()))
    assert track.scored.count(0, 9) == 2


@given(runs, runs, st.integers(0, 70), st.integers(0, 110))
def test_runs_are_sets(mine: list[tuple[int, int]], others: list[tuple[int, int]], start: int, stop: int) -> None:
    here, there, sets = Runs(), Runs(), [set[int](), set[int]()]
    for found, positions, parts in ((here, sets[0], mine), (there, sets[1], others)):
        for first, count in parts:
            found.add(first, first + count)
            positions.update(range(first, first + count))
    asked = set(range(start, stop))
    assert here.count(start, stop) == len(sets[0] & asked)
    assert here.count_absent(there, start, stop) == len((sets[1] - sets[0]) & asked)
    assert here.first == min(sets[0], default=None)
    copy = here.copy()
    copy.add(0, 200)
    assert here.count(0, 200) == len(sets[0])


def test_decoding_makes_one_stretch_and_a_preemption_one_more() -> None:
    track = ChoiceTrack(10, 1)
    track.add(Reading(((0, 10, 0),), ((9, 1),), np.zeros(1, dtype=np.float32).tobytes()))
    for position in range(10, 500):
        track.add(Reading(((position, 1, 0),), ((position, 1),), np.zeros(1, dtype=np.float32).tobytes()))
    assert (len(track.forwarded._runs), len(track.scored._runs)) == (1, 1)
    track.add(Reading(((0, 500, 0),)))
    track.add(Reading(((500, 1, 0),)))
    assert len(track.forwarded._runs) <= 2


def test_only_a_sequence_that_ended_well_is_complete() -> None:
    reasons = (None, "abort", "error", "stop", "length", "repetition")
    assert [ChoiceTrack(1, 0, finish_reason=r).complete for r in reasons] == [False] * 3 + [True] * 3
