"""Databases that do not do what they are asked."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event

from pilothouse.records.store import RecordStore


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process, as SQLite sees it, holds the file and writes."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def full_disk(store: RecordStore) -> Iterator[None]:
    """A SQLite file cannot grow."""
    pages = 1

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    event.listen(store.engine, "begin", limit)
    try:
        yield
    finally:
        pages = 2**30


class Gate:
    """Statements that insert wait until it is opened; `reached` once one does."""

    def __init__(self, store: RecordStore, before: Callable[[], Any] | None = None) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self._before = before
        event.listen(store.engine, "before_cursor_execute", self._wait)

    def _wait(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO responses"):
            self.reached.set()
            if self._before is not None:
                self._before()
            assert self.open.wait(30)
