"""A file of SQLite that another process is about to write is waited for when it is opened, too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

import pilothouse.records.database
from pilothouse.records.database import DatabaseError, database_url, make_database, make_file, reading


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """A new file that another connection is about to write: the mode of its journal cannot be changed meanwhile."""
    path = tmp_path / "records.sqlite"
    make_file(database_url(f"sqlite:///{path}"))
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE another (value)")
        other.execute("BEGIN IMMEDIATE")
        yield path, other


def test_a_first_connection_waits_for_who_is_about_to_write(
    busy: tuple[Path, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = busy
    refused = Event()

    def wait(seconds: float) -> None:
        refused.set()

    monkeypatch.setattr("pilothouse.records.database.time.sleep", wait)
    engine = make_database(database_url(f"sqlite:///{path}"))

    def first() -> object:
        with reading(engine) as connection:
            return connection.exec_driver_sql("PRAGMA journal_mode").scalar()

    with ThreadPoolExecutor(1) as pool:
        mode = pool.submit(first)
        assert refused.wait(30)
        assert not mode.done()
        other.execute("COMMIT")
        assert mode.result(30) == "wal"
    engine.dispose()


def test_a_first_connection_does_not_wait_for_ever(
    busy: tuple[Path, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = busy
    monkeypatch.setattr(pilothouse.records.database, "BUSY_SECONDS", 0.1)
    engine = make_database(database_url(f"sqlite:///{path}"))
    with pytest.raises(DatabaseError, match="database is locked"), reading(engine):
        pass
    engine.dispose()
