"""What is written is found again, word for word, in either database."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from records_support.outcomes import expected, outcome, scored
from sqlalchemy import insert, select, update

from pilothouse.core.errors import StartupError
from pilothouse.records.database import DatabaseError, database_url
from pilothouse.records.filters import Filters
from pilothouse.records.labels import Label
from pilothouse.records.rows import LONGEST_NAME, make_row, storable
from pilothouse.records.schema import versions
from pilothouse.records.store import RecordStore

HOSTILE = [
    "o'clock",
    'a "quoted" one',
    "100%_; DROP TABLE responses; --",
    "nul\x00within",
    "nul\\x00within",
    "lone \ud800 surrogate",
    "naïve 漢字 🦜",
    "x" * 10_000,
    "x" * 10_000 + "y",
    "🦜" * 10_000,
    "🦜" * LONGEST_NAME,
    "",
    " ",
]


def test_a_record_is_what_was_observed(store: RecordStore) -> None:
    requests = [outcome(i) for i in range(40)]
    store.write([make_row(request) for request in requests])
    for request in requests:
        assert store.find(request.response_id) == expected(request)
    assert store.find("chatcmpl-40") is None


def test_of_two_records_of_one_id_the_newest_is_found(store: RecordStore) -> None:
    old, new = scored(1, 0.9, response_id="same"), scored(2, 0.1, response_id="same")
    store.write([make_row(new), make_row(old)])
    assert store.find("same") == expected(new, replaced=1)
    store.label("same", Label("risk", True, "me"))
    assert store.quality()[0].counts[False, True] == 1, "the newest is labelled"


def test_hostile_names_are_kept_apart_and_found(store: RecordStore) -> None:
    requests = [
        scored(
            i, 0.5, response_id=name, model_name=name, steering=name, route=name, error=name, name=name, version=name
        )
        for i, name in enumerate(HOSTILE)
    ]
    store.write([make_row(request) for request in requests])
    for name, request in zip(HOSTILE, requests, strict=True):
        assert store.find(name) == expected(request)
        for filters in (Filters(model=name), Filters(steering=name), Filters(route=name), Filters(probe=name)):
            assert store.page(filters).records == [expected(request)]
        said = store.label(name, Label(name, True, name))
        assert (said.shown["probe"], said.shown["value"]) == (name, True)
        assert store.labelled(name)[0].version == storable(name)


def test_names_that_differ_are_stored_as_names_that_differ() -> None:
    assert len({storable(name) for name in HOSTILE}) == len(HOSTILE)
    assert all(len(storable(name).encode()) <= 4 * LONGEST_NAME for name in HOSTILE)
    assert storable("calm+honest") == "calm+honest"


def test_a_batch_that_was_stored_without_saying_so_is_not_stored_twice(store: RecordStore) -> None:
    rows = [make_row(outcome(i)) for i in range(3)]
    store.write(rows, "first")
    store.write(rows, "first")
    assert len(store.page(Filters()).records) == 3
    store.write(rows, "second")
    assert len(store.page(Filters()).records) == 6
    store.write([], "first")


def test_a_batch_is_stored_whole_or_not_at_all(store: RecordStore) -> None:
    rows = [make_row(outcome(i)) for i in range(3)]
    rows[2].response["body"] = None
    with pytest.raises(DatabaseError):
        store.write(rows)
    assert store.page(Filters()).records == []


def test_several_that_begin_and_write_at_once_are_in_nobodys_way(url: str) -> None:
    stores = [RecordStore(url) for _ in range(6)]
    together = Barrier(len(stores))

    def work(number: int) -> None:
        together.wait()
        stores[number].open()
        for i in range(5):
            stores[number].write([make_row(outcome(100 * number + 10 * i + j)) for j in range(10)])

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(work, range(len(stores))))
    assert len(stores[0].page(Filters(), limit=1000).records) == 6 * 50
    with stores[0].engine.connect() as connection:
        assert connection.execute(select(versions)).all() == [(1,)]
    for store in stores:
        store.close()


def test_the_database_of_a_newer_release_is_refused(store: RecordStore, url: str) -> None:
    again = RecordStore(url)
    again.open()
    with store.engine.begin() as connection:
        connection.execute(update(versions).values(version=2))
    for create in (True, False):
        with pytest.raises(StartupError, match="version 2"):
            again.open(create)
    with store.engine.begin() as connection:
        connection.execute(update(versions).values(version=1))
        connection.execute(insert(versions).values(version=3))
    with pytest.raises(StartupError, match="version 3"):
        again.open()
    again.close()


def test_a_database_without_records_is_not_made_one_by_looking(url: str) -> None:
    store = RecordStore(url)
    with pytest.raises(DatabaseError):
        store.open(create=False)
    with pytest.raises(DatabaseError):
        store.page(Filters())
    store.open()
    store.open(create=False)
    store.close()


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "records.sqlite"
    before = os.umask(0)
    try:
        store = RecordStore(f"sqlite:///{path}")
        store.open()
        store.write([make_row(outcome(1))])
        modes = [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()]
        store.close()
    finally:
        os.umask(before)
    assert len(modes) == 3, "the file, and those of its journal"
    assert set(modes) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("postgres://u@h/db", "postgresql+psycopg"),
        ("postgresql://u@h/db", "postgresql+psycopg"),
        ("postgresql+psycopg://u@h/db", "postgresql+psycopg"),
        ("sqlite:////a/b.sqlite", "sqlite"),
        ("sqlite+pysqlite:////a/b.sqlite", "sqlite"),
    ],
)
def test_urls_that_can_be(text: str, driver: str) -> None:
    assert database_url(text).drivername == driver


@pytest.mark.parametrize(
    "text",
    [
        "",
        "records.sqlite",
        "postgres//u:hunter2@h/db",
        "postgresql://u:hunter2@h:port/db",
        "mysql://u:hunter2@h/db",
        "postgresql+asyncpg://u:hunter2@h/db",
        "nothing://u:hunter2@h/db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_urls_that_cannot_be(text: str) -> None:
    with pytest.raises(StartupError) as caught:
        RecordStore(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@localhost:1/db?connect_timeout=2",
        "postgresql://u@localhost:1/db?password=hunter2",
        "postgresql://u@localhost:1/db?hunter2=hunter2",
    ],
)
def test_errors_hold_no_passwords(url: str) -> None:
    store = RecordStore(url)
    with pytest.raises(DatabaseError) as caught:
        store.open()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in store.name
    assert "localhost" in str(caught.value)
