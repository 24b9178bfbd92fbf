"""Records in a database: written in batches, found by id, listed, labelled, and deleted when they are old or many."""

import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy import Connection, Engine, Select, delete, func, insert, select

from pilothouse.core.errors import NotFound
from pilothouse.records.database import (
    DatabaseError,
    database_url,
    file_of,
    make_database,
    make_file,
    reading,
    shown,
    told,
    writing,
)
from pilothouse.records.filters import Cursor, Filters, Order, page_of_ids
from pilothouse.records.labels import Label, StoredLabel, labels_of, put_label
from pilothouse.records.quality import LabelCounts, Labelled, read_labelled, read_quality
from pilothouse.records.rows import Row, storable
from pilothouse.records.schema import TRIM_LOCK, is_prepared, labels, prepare, responses, scores, stored_bytes

_DAY = 86_400.0
_MB = 1024 * 1024
_PAGE_BYTES = 32 * _MB
_TRIM_ROWS = 500
_OVERHEAD = 4
_FREED_PAGES = 2_000


class Page(NamedTuple):
    """Records as their JSON shows them, and where the next page begins; None after the last."""

    records: list[dict[str, Any]]
    next: Cursor | None


class RecordStore:
    """The database. Every method blocks; DatabaseError when the database fails.

    url: SQLAlchemy's (StartupError if it is none); max_days, max_mb: what `trim` leaves; clock: seconds since 1970.
    """

    def __init__(
        self, url: str, max_days: float = 30.0, max_mb: float = 1024.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._url = database_url(url)
        self.engine: Engine = make_database(self._url)
        self._max_seconds = max_days * _DAY
        self._max_bytes = int(max_mb * _MB)
        self._clock = clock
        self.name = shown(self._url)

    def open(self, create: bool = True) -> None:
        """Have the tables there. StartupError if a newer Pilothouse made them; DatabaseError also when there are none
        and they are not to be made."""
        with told(self.engine):
            if create:
                make_file(self._url)
                prepare(self.engine)
                return
            # SQLite would make the file by opening it.
            path = file_of(self._url)
            if (path is not None and not path.exists()) or not is_prepared(self.engine):
                raise DatabaseError(f"{self.name} holds no records")

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def write(self, rows: Sequence[Row], batch: str | None = None) -> None:
        """Store these, all or none. batch: name of an attempt; what an earlier one of this name stored, without being
        able to say so, is not stored again."""
        if not rows:
            return
        with writing(self.engine) as connection:
            if batch is not None and _is_stored(connection, rows[0], batch):
                return
            name = batch or secrets.token_hex(8)
            inserted = connection.execute(
                insert(responses).returning(responses.c.id, sort_by_parameter_order=True),
                [{**row.response, "batch": name} for row in rows],
            )
            ids = inserted.scalars().all()
            if found := [{"record": i, **score} for i, row in zip(ids, rows, strict=True) for score in row.scores]:
                connection.execute(insert(scores), found)

    def find(self, response_id: str) -> dict[str, Any] | None:
        """The newest record of this id, with its labels, and counting the others as replaced; None without one."""
        with reading(self.engine) as connection:
            ids = connection.execute(_of_id(response_id)).scalars().all()
            found = _records(connection, ids[:1])
        return {**found[0], "replaced": len(ids) - 1} if found else None

    def page(self, filters: Filters, order: Order = "time", after: Cursor | None = None, limit: int = 100) -> Page:
        """The first `limit` records behind `after`, fewer if they are very large, with their labels."""
        with reading(self.engine) as connection:
            rows = connection.execute(page_of_ids(filters, order, after, limit + 1)).all()
            sizes = itertools.accumulate(row.size for row in rows)
            # One at least, however large, or there would be no way past it.
            n = min(limit, max(1, sum(size <= _PAGE_BYTES for size in sizes)))
            found = _records(connection, [row.id for row in rows[:n]])
        last = rows[n - 1] if len(rows) > n else None
        return Page(found, None if last is None else Cursor(order, last.key, last.id))

    def labelled(
        self, probe: str, version: str | None = None, since: float | None = None, model: str | None = None
    ) -> list[Labelled]:
        """As `read_labelled`."""
        return read_labelled(self.engine, probe, version, since, model)

    def quality(self, since: float | None = None) -> list[LabelCounts]:
        """As `read_quality`."""
        return read_quality(self.engine, since)

    def export(self, filters: Filters, target: Path | BinaryIO) -> int:
        """As `export_to`."""
        # Imported here: pyarrow takes a while, and most commands do without it.
        from pilothouse.records.export import export_to

        return export_to(self.engine, filters, target)

    def exported(self, filters: Filters) -> Iterator[bytes]:
        """As the function."""
        from pilothouse.records.export import exported

        return exported(self.engine, filters)

    def label(self, response_id: str, label: Label) -> StoredLabel:
        """Store what a source found of the newest record of this id, in place of what it said before. NotFound without
        a record; BadRequest for a choice or a probe that it does not have."""
        with writing(self.engine) as connection:
            record = connection.execute(_of_id(response_id).limit(1)).scalar()
            if record is None:
                raise NotFound("there is no such record: it is unknown, unscored or too old")
            return put_label(connection, record, label, self._clock())

    def trim(self) -> int:
        """Delete the oldest records, at most some hundreds at once, if they are too old or too many; how many it was.
        0: what is left may stay."""
        with writing(self.engine) as connection:
            if connection.dialect.name == "postgresql":
                free = connection.execute(select(func.pg_try_advisory_xact_lock(TRIM_LOCK))).scalar_one()
                if not free:  # another API server does it
                    return 0
            ids = self._excess(connection)
            for table, key in ((labels, labels.c.record), (scores, scores.c.record), (responses, responses.c.id)):
                connection.execute(delete(table).where(key.in_(ids)))
        if ids and self.engine.dialect.name == "sqlite":
            self._give_back()
        return len(ids)

    def _excess(self, connection: Connection) -> list[int]:
        query = select(responses.c.id, responses.c.time, responses.c.size)
        oldest = connection.execute(query.order_by(responses.c.time, responses.c.id).limit(_TRIM_ROWS)).all()
        last = self._clock() - self._max_seconds
        excess = float(stored_bytes(connection) - self._max_bytes)
        if connection.dialect.name == "sqlite":
            # A record takes up more of the file than its own size, up to some four times: no more goes than must.
            excess /= _OVERHEAD
        found = []
        for row in oldest:
            if row.time >= last and excess <= 0:
                break
            found.append(int(row.id))
            excess -= row.size
        return found

    def _give_back(self) -> None:
        """Return the room of deleted records to the file system."""
        with told(self.engine):
            # Outside of SQLAlchemy's transactions: it does nothing in one.
            connection = self.engine.raw_connection()
            try:
                # As a script: the module's `execute` ends after the first page.
                connection.cursor().executescript(f"PRAGMA incremental_vacuum({_FREED_PAGES})")
            finally:
                connection.close()


def _of_id(response_id: str) -> Select[Any]:
    """Ids of the records of this response, the newest first."""
    of_response = select(responses.c.id).where(responses.c.response_id == storable(response_id))
    return of_response.order_by(responses.c.time.desc(), responses.c.id.desc())


def _is_stored(connection: Connection, first: Row, batch: str) -> bool:
    query = select(responses.c.id).where(
        responses.c.response_id == first.response["response_id"], responses.c.batch == batch
    )
    return connection.execute(query.limit(1)).scalar() is not None


def _records(connection: Connection, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The records of these ids, in this order, with their labels."""
    query = select(responses.c.id, responses.c.body).where(responses.c.id.in_(ids))
    bodies = {row.id: row.body for row in connection.execute(query)}
    said = labels_of(connection, ids)
    return [{**json.loads(bodies[i]), "replaced": 0, "labels": said.get(i, [])} for i in ids if i in bodies]
