"""Pieces of work as large as a model's speed allows."""

from collections.abc import Sequence

import pytest

from pilothouse.steering.pace import SECONDS, Pace


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("took", "sizes"),
    [
        ([0.1, 0.1, 0.1, 0.1], [16, 32, 64, 100, 100]),
        ([SECONDS, SECONDS], [16, 16, 16]),
        ([0.49 * SECONDS, 0.51 * SECONDS], [16, 32, 32]),
        ([1.9 * SECONDS, 2.1 * SECONDS], [16, 16, 8]),
        ([9 * SECONDS] * 6, [16, 8, 4, 2, 1, 1, 1]),
        ([0.1, 3 * SECONDS], [16, 32, 16]),
    ],
)
def test_a_piece_follows_the_time_that_the_last_one_took(took: Sequence[float], sizes: Sequence[int]) -> None:
    clock = Clock()
    pace, seen = Pace(100, clock=clock), list[int]()
    for seconds in took:
        seen.append(pace.size)
        with pace.timed():
            clock.now += seconds
    assert [*seen, pace.size] == sizes


def test_the_first_piece_is_not_larger_than_any_may_be() -> None:
    assert Pace(4).size == 4
