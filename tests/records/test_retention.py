"""What is too old or too much is deleted, the oldest first, with its scores and labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from records_support.outcomes import scored
from records_support.waiting import wait_until
from records_support.writers import StartWriter
from sqlalchemy import func, select

from pilothouse.records.filters import Filters
from pilothouse.records.labels import Label
from pilothouse.records.rows import make_row
from pilothouse.records.schema import labels, responses, scores, stored_bytes
from pilothouse.records.store import RecordStore

DAY = 86_400.0
MB = 1024 * 1024


def open_store(url: str, **more: float) -> RecordStore:
    store = RecordStore(url, clock=lambda: 100 * DAY, **more)
    store.open()
    return store


def trim(store: RecordStore) -> int:
    total = 0
    while n := store.trim():
        total += n
    return total


def ids(store: RecordStore) -> list[str]:
    return [record["id"] for record in store.page(Filters(), limit=10_000).records]


def rows(store: RecordStore) -> list[int]:
    with store.engine.connect() as connection:
        tables = (responses, scores, labels)
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]


def test_old_records_go(url: str) -> None:
    store = open_store(url, max_days=10)
    # Not in the order of their time: a long request is stored after a short one that began later.
    order = [5, 0, 3, 1, 4, 2, *range(6, 1200)]
    store.write([make_row(scored(i, 0.5, created=(89.5 + 0.1 * i) * DAY)) for i in order])
    for i in (0, 10):
        store.label(f"chatcmpl-{i}", Label("risk", True, "me"))
    assert trim(store) == 5
    assert set(ids(store)) == {f"chatcmpl-{i}" for i in range(5, 1200)}
    assert rows(store) == [1195, 1195, 1]
    assert trim(store) == 0
    store.close()


@pytest.mark.parametrize("size", [10, 2_000])
def test_too_many_records_go_the_oldest_first(url: str, size: int) -> None:
    store = open_store(url, max_days=1e5, max_mb=1)
    for start in range(0, 2500, 500):
        body = ({"index": 0, "text": "x" * size},)
        store.write([make_row(scored(i, 0.5, created=float(i), body=body)) for i in range(start, start + 500)])
    with store.engine.connect() as connection:
        before = stored_bytes(connection)
    deleted = trim(store)
    with store.engine.connect() as connection:
        after = stored_bytes(connection)
    kept = ids(store)
    if before <= MB:
        assert deleted == 0
    else:
        assert 0.9 * MB <= after <= MB
    assert kept == [f"chatcmpl-{i}" for i in range(2499, deleted - 1, -1)]
    assert rows(store)[:2] == [2500 - deleted] * 2
    assert before > MB or size == 10
    store.close()


def test_the_file_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    store = open_store(f"sqlite:///{path}", max_days=1e5, max_mb=1)
    body = ({"index": 0, "text": "x" * 2_000},)
    store.write([make_row(scored(i, 0.5, created=float(i), body=body)) for i in range(2000)])
    trim(store)
    store.close()
    assert path.stat().st_size <= 1.1 * MB


def test_a_writer_trims_by_itself(url: str, start_writer: StartWriter) -> None:
    store = open_store(url, max_days=10)
    store.write([make_row(scored(i, 0.5, created=0.0)) for i in range(700)])
    start_writer(url, store=store)
    wait_until(lambda: rows(store) == [0, 0, 0])
