"""The database behind a URL: which ones there are, how they are opened, and how their errors are told without secrets.

Files of SQLite, and PostgreSQL through psycopg 3 (https://docs.sqlalchemy.org/en/21/dialects/).
"""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from pilothouse.core.errors import PilothouseError, StartupError

BUSY_SECONDS = 5.0
"""How long a statement waits for another process that writes to the same file."""

_RETRY_SECONDS = 0.01

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10
LOCK_SECONDS = 5
POOL_SECONDS = 5.0

_POSTGRES = "postgresql+psycopg"
_ALIASES = {"postgres": _POSTGRES, "postgresql": _POSTGRES, "sqlite+pysqlite": "sqlite"}
_LONGEST = 300
_WRITES = "pilothouse_writes"


class DatabaseError(PilothouseError):
    """The database of records did not do what it was asked; it says why in one line."""


def database_url(text: str) -> URL:
    """The URL of a database that records can be kept in; StartupError, without the text, which may hold a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StartupError(
            "the database of records is no URL: write sqlite:////folder/records.sqlite or postgresql://user@host/name"
        ) from None
    url = url.set(drivername=_ALIASES.get(url.drivername, url.drivername))
    if url.drivername not in ("sqlite", _POSTGRES):
        raise StartupError(f"records are kept in sqlite or postgresql, not in {url.drivername!r}")
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise StartupError("records need a file: sqlite:////folder/records.sqlite; --records none keeps none")
    return url


def shown(url: URL) -> str:
    """`url` for people: no password, and no options, which may hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


def file_of(url: URL) -> Path | None:
    """The file of a SQLite database that is given by its path."""
    if url.drivername != "sqlite" or url.database is None or url.database.startswith("file:"):
        return None
    return Path(url.database)


def make_file(url: URL) -> None:
    """Make the folder and the empty file of a SQLite database, for this user only: prompts are private. OSError."""
    if (path := file_of(url)) is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def make_database(url: URL) -> Engine:
    """The connections to a database; none is made yet. StartupError where the URL has options that cannot be."""
    arguments: dict[str, Any]
    if url.drivername == "sqlite":
        arguments = {"timeout": BUSY_SECONDS}
    else:
        arguments = {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "pilothouse",
            # A database that holds a lock, or is behind a cable that was pulled, must not hold whoever asks it.
            "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_SECONDS}s",
            "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
            "keepalives_idle": LOCK_SECONDS,
        }
        arguments = {name: value for name, value in arguments.items() if name not in url.query}
    try:
        engine = create_engine(
            url, connect_args=arguments, hide_parameters=True, pool_pre_ping=True, pool_timeout=POOL_SECONDS
        )
    except (SQLAlchemyError, ValueError, TypeError) as error:
        raise StartupError(f"records cannot be kept in {shown(url)}: {reason(error, url)}") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads; DatabaseError."""
    with told(engine), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: all of it or nothing; DatabaseError."""
    with told(engine), engine.execution_options(**{_WRITES: True}).begin() as connection:
        yield connection


@contextmanager
def told(engine: Engine) -> Iterator[None]:
    """Whatever the database says within, as a DatabaseError; the cause is kept for those who look at its kind."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseError(f"{shown(engine.url)}: {reason(error, engine.url)}") from error


def reason(error: BaseException, url: URL) -> str:
    """What went wrong, in one line and without the secrets of `url`."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    said = " ".join(str(cause).split())
    for secret in (url.password, *_values(url)):
        if secret:
            said = re.sub(rf"(?<!\w){re.escape(str(secret))}(?!\w)", "***", said)
    return f"{type(cause).__name__}: {said[:_LONGEST]}" if said else type(cause).__name__


def _values(url: URL) -> Iterator[str]:
    for value in url.query.values():
        yield from (value,) if isinstance(value, str) else value


def _prepare_sqlite(connection: Any, record: object) -> None:
    # The module's own transactions begin too late: reads and definitions would stand outside of them.
    connection.isolation_level = None
    cursor = connection.cursor()
    if cursor.execute("PRAGMA page_count").fetchone() == (0,):
        # So that room which old records leave goes back to the file system. It takes a lock, and only here an effect.
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _make_wal(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _make_wal(cursor: sqlite3.Cursor) -> None:
    # While another connection is about to write, SQLite refuses to change the journal's mode at once, without the
    # waiting that it does for every other statement; several servers that start together meet in it.
    patient_until = time.monotonic() + BUSY_SECONDS
    while cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > patient_until:
                raise
            time.sleep(_RETRY_SECONDS)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes would be refused, not made to wait, when another wrote in between.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
