"""Databases for the tests of records, and stores and writers on them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records_support.postgres import Postgres, programs
from records_support.writers import FAST, StartWriter

from pilothouse.records.store import RecordStore
from pilothouse.records.writer import RecordWriter


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    server = Postgres(found)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """Running at the start of every test, whatever the last one did to it."""
    if not postgres_server.running:
        postgres_server.start()
    return postgres_server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.sqlite'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_database()


@pytest.fixture
def store(url: str) -> Iterator[RecordStore]:
    """With tables."""
    made = RecordStore(url)
    made.open()
    yield made
    made.close()


@pytest.fixture
def start_writer() -> Iterator[StartWriter]:
    started: list[Callable[[], None]] = []

    def start(url: str, **more: Any) -> RecordWriter:
        store = more.pop("store", None) or RecordStore(url)
        writer = RecordWriter(store, limits=more.pop("limits", FAST), **more)
        started.append(lambda: writer.close(5))
        writer.start()
        return writer

    yield start
    for close in started:
        close()
