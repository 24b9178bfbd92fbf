"""The record store of a server: the database and what writes to it."""

from dataclasses import dataclass

from pilothouse.core.config import RecordsConfig
from pilothouse.records.database import database_url, make_database
from pilothouse.records.queue import OnChange
from pilothouse.records.redaction import Redaction, load_redaction
from pilothouse.records.store import RecordStore
from pilothouse.records.writer import RecordWriter


@dataclass(frozen=True)
class Records:
    """store: for reading and labels; writer: the sink."""

    store: RecordStore
    writer: RecordWriter


def check_records(config: RecordsConfig) -> None:
    """StartupError if records cannot be kept as configured, as far as can be told without the database."""
    if config.url is not None:
        make_database(database_url(config.url)).dispose()
    if config.redact is not None:
        load_redaction(config.redact)


def open_records(config: RecordsConfig, on_change: OnChange | None = None) -> Records | None:
    """The store of a server, at work; None where none is configured. StartupError if it cannot be as configured, or the
    database is a newer Pilothouse's; one that cannot be reached is waited for by the writer."""
    if config.url is None:
        return None
    redact = None if config.redact is None else load_redaction(config.redact)
    store = RecordStore(config.url, config.max_days, config.max_mb)
    writer = RecordWriter(store, Redaction(redact) if config.text else None, on_change=on_change)
    writer.start()
    return Records(store, writer)
