"""Tracks against a dictionary from position to row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pilothouse.core.messages import Reading
from pilothouse.core.tracks import ChoiceTrack

runs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=12)


@given(runs, st.integers(0, 70), st.integers(0, 90))
def test_scores_and_positions_are_kept_by_absolute_position(
    parts: list[tuple[int, int]], start: int, stop: int
) -> None:
    track, expected, value = ChoiceTrack(5, 2), dict[int, list[float]](), 0.0
    for first, count in parts:
        rows = np.arange(value, value + 2 * count, dtype=np.float32).reshape(count, 2)
        value += 2 * count
        expected.update({first + i: rows[i].tolist() for i in range(count)})
        track.add(Reading(((first, count, 0),), ((first, count),), rows.tobytes()))
    found = track.scores(start, stop)
    assert len(found) == max(stop - start, 0)
    for position, row in zip(range(start, stop), found.tolist(), strict=True):
        assert row == expected[position] if position in expected else np.isnan(row).all()
    assert track.count_forwarded(start, stop) == sum(start <= position < stop for position in expected)
    assert track.first_forwarded == min(expected, default=5)
