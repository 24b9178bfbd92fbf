"""Scores beside cached blocks: what is collected step by step is what is taken back, block by block."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.core.sites import Float32
from pilothouse.engine.score_store import ENTRY_OVERHEAD, BlockCollector, ScoreStore

SIZE = 4
PROBES = (b"one", b"two")


def rows_at(start: int, stop: int, content: int = 0) -> Float32:
    """Rows that say which position, which probe and which content they are of."""
    positions = np.arange(start, stop)[:, None]
    return (1000 * content + 10 * positions + np.arange(len(PROBES))).astype(np.float32)


def hashes(n: int, content: int = 0) -> list[bytes]:
    return [f"{content}:{i}".encode() for i in range(n)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 12), st.integers(0, 20))
def test_whole_blocks_come_back_however_they_were_cut(first: int, cuts: list[int], known: int, again: int) -> None:
    store = ScoreStore(SIZE)
    collector = BlockCollector(store, PROBES)
    position = start = first * SIZE
    for n in cuts:
        collector.add(position, rows_at(position, position + n), hashes(known))
        position += n
    whole = [b for b in range(known) if b >= first and (b + 1) * SIZE <= position]
    assert {block for block, _ in store._scores} == {hashes(known)[b] for b in whole}
    for block in whole:
        expected = rows_at(block * SIZE, (block + 1) * SIZE)
        np.testing.assert_array_equal(store.take([hashes(known)[block]], PROBES), expected)
    # Put back and begun again at a block, for other tokens: nothing of the first attempt gets under the new hashes.
    begin = (again // SIZE) * SIZE
    collector.add(begin, rows_at(begin, begin + 3 * SIZE, content=1), hashes(known, content=1))
    for block in range(begin // SIZE, min(begin // SIZE + 3, known)):
        if begin != position or start == begin:
            expected = rows_at(block * SIZE, (block + 1) * SIZE, content=1)
            np.testing.assert_array_equal(store.take([hashes(known, 1)[block]], PROBES), expected)


def test_rows_wait_until_the_hash_of_their_block_is_known() -> None:
    store = ScoreStore(SIZE)
    collector = BlockCollector(store, PROBES)
    collector.add(0, rows_at(0, 9), hashes(1))
    assert store.covered(hashes(3), PROBES) == 1
    collector.add(9, rows_at(9, 10), hashes(2))
    assert store.covered(hashes(3), PROBES) == 2
    np.testing.assert_array_equal(store.take(hashes(2), PROBES), rows_at(0, 8))


def test_a_block_counts_only_with_every_probe_and_behind_no_hole() -> None:
    store = ScoreStore(SIZE)
    for block in (0, 1, 3):
        store.put(hashes(4)[block], PROBES, rows_at(block * SIZE, (block + 1) * SIZE))
    store.put(hashes(4)[2], PROBES[:1], rows_at(8, 12)[:, :1])
    assert store.covered(hashes(4), PROBES) == 2
    assert store.covered(hashes(4), PROBES[:1]) == 4
    assert store.covered(hashes(4), [b"three"]) == 0
    np.testing.assert_array_equal(store.take(hashes(2), PROBES[::-1]), rows_at(0, 8)[:, ::-1])


def test_what_was_least_recently_used_goes_first_and_a_reset_forgets_all() -> None:
    store = ScoreStore(SIZE, max_bytes=4 * (4 * SIZE + ENTRY_OVERHEAD))
    for block in hashes(2):
        store.put(block, PROBES, rows_at(0, 4))
    store.take(hashes(1), PROBES)
    store.put(b"new", PROBES, rows_at(0, 4))
    assert len(store) == 4
    assert store.covered([b"new"], PROBES) == store.covered(hashes(1), PROBES) == 1
    assert store.covered(hashes(2)[1:], PROBES) == 0
    store.clear()
    assert len(store) == store.covered([b"new"], PROBES) == 0


def test_an_entry_costs_no_more_than_is_reckoned() -> None:
    import tracemalloc

    tracemalloc.start()
    store = ScoreStore(16)
    before, _ = tracemalloc.get_traced_memory()
    for i in range(5000):
        store.put(i.to_bytes(32, "big"), [i.to_bytes(32, "little")], np.zeros((16, 1), dtype=np.float32))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / len(store) < 4 * 16 + ENTRY_OVERHEAD
