"""The tables of records: one row a response, one a probe on each of its choices, and what people found of those."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
)

from pilothouse.core.errors import StartupError
from pilothouse.records.database import reading, shown, writing

SCHEMA_VERSION = 1
BODY_FORMAT = 1
"""Of the JSON that a response's row holds."""

_Number = BigInteger().with_variant(Integer, "sqlite")
_LOCK = 0x70696C6F74
"""PostgreSQL's advisory lock of those who make the tables; one more is that of those who delete old records."""
TRIM_LOCK = _LOCK + 1

metadata = MetaData()

versions = Table("pilothouse_schema", metadata, Column("version", Integer, nullable=False))

responses = Table(
    "responses",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("response_id", Text, nullable=False, index=True),
    Column("time", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("steering", Text, nullable=False),
    Column("flagged", Boolean, nullable=False),
    Column("error", Text),
    Column("trace_id", Text),
    Column("seconds", Double, nullable=False),
    Column("size", Integer, nullable=False),
    Column("format", Integer, nullable=False),
    Column("batch", Text, nullable=False),
    Column("body", Text, nullable=False),
    sqlite_autoincrement=True,
)
"""time: seconds since 1970; size: bytes of body; batch: what was written in one transaction shares it."""

# With the size in it, what is stored can be added up without reading the bodies.
Index("responses_by_time", responses.c.time, responses.c.id, responses.c.size)
IS_FLAGGED = responses.c.flagged.is_(True)
Index("responses_flagged", responses.c.time, responses.c.id, sqlite_where=IS_FLAGGED, postgresql_where=IS_FLAGGED)

scores = Table(
    "scores",
    metadata,
    Column("record", _Number, primary_key=True, autoincrement=False),
    Column("choice", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("probe", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("score", Double),
    Column("prompt_end", Double),
    Column("statistic", Double),
    Column("flagged", Boolean, nullable=False),
    Column("level", Text),
    Column("reason", Text),
    Column("n_scored", Integer, nullable=False),
    Column("n_expected", Integer, nullable=False),
)
"""record: id of the response's row; number: of the probe among those of its choice, for requests may have several
probes that nobody named; statistic: the aggregated logit."""

Index("scores_by_probe", scores.c.probe, scores.c.score, scores.c.record)

labels = Table(
    "labels",
    metadata,
    Column("record", _Number, primary_key=True, autoincrement=False),
    Column("choice", Integer, primary_key=True, autoincrement=False),
    Column("probe", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("value", Boolean, nullable=False),
    Column("time", Double, nullable=False),
)
"""One a source: what it says later replaces what it said."""

Index("labels_by_probe", labels.c.probe, labels.c.record)


def prepare(engine: Engine) -> None:
    """Have the tables there; StartupError if they are of a newer version, DatabaseError if the database fails."""
    with reading(engine) as connection:
        if _is_ready(connection):
            return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        # Another API server may have been faster.
        if not _is_ready(connection):
            metadata.create_all(connection)
            connection.execute(insert(versions).values(version=SCHEMA_VERSION))


def is_prepared(engine: Engine) -> bool:
    """Whether the tables are there; as `prepare`, without making them."""
    with reading(engine) as connection:
        return _is_ready(connection)


def _is_ready(connection: Connection) -> bool:
    if not inspect(connection).has_table(versions.name):
        return False
    found = connection.execute(select(func.max(versions.c.version))).scalar()
    if found is not None and found > SCHEMA_VERSION:
        raise StartupError(
            f"{shown(connection.engine.url)} holds records of version {found}; this server knows {SCHEMA_VERSION}: "
            "upgrade it, or keep records elsewhere"
        )
    return True


def stored_bytes(connection: Connection) -> int:
    """What the records take up. SQLite: the pages of the file that are in use, indexes and all; PostgreSQL, which gives
    room back at times of its own: the bodies of all records, before its compression."""
    if connection.dialect.name == "sqlite":
        pages, free, size = (
            int(connection.execute(text(f"PRAGMA {name}")).scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size
    return int(connection.execute(select(func.coalesce(func.sum(responses.c.size), 0))).scalar_one())
