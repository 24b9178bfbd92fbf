"""The slot table against a model that counts holders by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilothouse.engine.slots import SlotTable

KEYS = [bytes([i]) for i in range(8)]


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from(KEYS), max_size=3)), max_size=60))
def test_any_sequence_of_acquisitions_keeps_the_books(capacity: int, moves: list[tuple[bool, list[bytes]]]) -> None:
    table, held = SlotTable(capacity), list[list[bytes]]()
    for acquire, keys in moves:
        if acquire:
            needed = Counter(key for group in held for key in set(group))
            fits = len(set(needed) | set(keys)) <= capacity
            assert table.can_acquire(keys) == fits
            if fits:
                places = table.acquire(keys)
                assert len(set(places)) == len(set(keys))
                for key in keys:
                    table.mark_loaded(key)
                held.append(keys)
        elif held:
            table.release(held.pop(0))
        table.check_integrity()
        assert table.held == len({key for group in held for key in group})
    for keys in held:
        table.release(keys)
    table.check_integrity()
    assert table.held == 0


def test_idle_content_is_found_again_without_loading() -> None:
    table = SlotTable(2)
    (place,) = table.acquire([b"a"])
    assert table.mark_loaded(b"a")
    table.release([b"a"])
    assert table.acquire([b"a"]) == [place]
    assert not table.mark_loaded(b"a")


def test_content_that_lost_its_place_is_loaded_anew() -> None:
    table = SlotTable(1)
    for key in (b"a", b"b", b"a"):
        table.acquire([key])
        assert table.mark_loaded(key)
        table.release([key])


def test_a_place_reserved_but_never_loaded_is_free_again() -> None:
    table = SlotTable(1)
    table.acquire([b"a"])
    table.release([b"a"])
    table.acquire([b"a"])
    assert table.mark_loaded(b"a"), "the engine never got the content, so it must be loaded now"


def test_releasing_what_nobody_holds_is_an_error() -> None:
    table = SlotTable(1)
    with pytest.raises(KeyError):
        table.release([b"a"])
