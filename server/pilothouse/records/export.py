"""Records as a Parquet file, written a row group at a time, whatever their number.

Columns: those of the table, `scores` and `labels` as lists of structs, and the whole record as JSON in `record`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine, func, select

from pilothouse.records.database import reading
from pilothouse.records.filters import Filters
from pilothouse.records.labels import labels_of
from pilothouse.records.schema import responses, scores

GROUP_ROWS = 1_000
GROUP_BYTES = 16 * 1024 * 1024
"""Of the records in one row group; it may have one record more."""

_SCORE = pa.struct(
    [
        ("choice", pa.int32()),
        ("probe", pa.string()),
        ("version", pa.string()),
        ("score", pa.float64()),
        ("prompt_end", pa.float64()),
        ("statistic", pa.float64()),
        ("flagged", pa.bool_()),
        ("level", pa.string()),
        ("reason", pa.string()),
        ("n_scored", pa.int32()),
        ("n_expected", pa.int32()),
    ]
)
_LABEL = pa.struct(
    [
        ("probe", pa.string()),
        ("choice", pa.int32()),
        ("value", pa.bool_()),
        ("source", pa.string()),
        ("time", pa.float64()),
    ]
)
_PLAIN = {
    "response_id": pa.string(),
    "time": pa.float64(),
    "model": pa.string(),
    "route": pa.string(),
    "steering": pa.string(),
    "flagged": pa.bool_(),
    "error": pa.string(),
    "trace_id": pa.string(),
    "seconds": pa.float64(),
    "format": pa.int32(),
}
SCHEMA = pa.schema(
    [*_PLAIN.items(), ("scores", pa.list_(_SCORE)), ("labels", pa.list_(_LABEL)), ("record", pa.string())]
)


def export_to(engine: Engine, filters: Filters, target: Path | BinaryIO) -> int:
    """Write the records that meet `filters`, in the order in which they were stored, to a file or a binary stream; how
    many it was. A file that could not be finished is removed; DatabaseError, OSError."""
    if isinstance(target, Path):
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                n = export_to(engine, filters, file)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return n
    n = 0
    for chunk, rows in _chunks(engine, filters):
        target.write(chunk)
        n += rows
    return n


def exported(engine: Engine, filters: Filters) -> Iterator[bytes]:
    """The same file, a piece at a time; DatabaseError."""
    for chunk, _ in _chunks(engine, filters):
        yield chunk


def _chunks(engine: Engine, filters: Filters) -> Iterator[tuple[bytes, int]]:
    """Pieces of the file, and how many records each ends."""
    out = _Out()
    with pa.PythonFile(out, mode="w") as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for table in _tables(engine, filters):
            writer.write_table(table)
            yield out.take(), table.num_rows
    yield out.take(), 0


class _Out:
    """What was written and not taken yet."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _tables(engine: Engine, filters: Filters) -> Iterator[pa.Table]:
    """A table a row group, each read in a transaction of its own; none of what is stored meanwhile."""
    with reading(engine) as connection:
        last = connection.execute(select(func.coalesce(func.max(responses.c.id), 0))).scalar_one()
    after = 0
    while True:
        table, after = _table(engine, filters, after, last)
        if table is None:
            return
        yield table


def _table(engine: Engine, filters: Filters, after: int, last: int) -> tuple[pa.Table | None, int]:
    within = (responses.c.id > after, responses.c.id <= last, filters.condition())
    with reading(engine) as connection:
        sizes = connection.execute(
            select(responses.c.id, responses.c.size).where(*within).order_by(responses.c.id).limit(GROUP_ROWS)
        ).all()
        ids, total = [], 0
        for row in sizes:
            if total > GROUP_BYTES:
                break
            ids.append(row.id)
            total += row.size
        if not ids:
            return None, after
        found = connection.execute(select(responses).where(responses.c.id.in_(ids)).order_by(responses.c.id)).all()
        scored: dict[int, list[dict[str, Any]]] = {i: [] for i in ids}
        order = (scores.c.record, scores.c.choice, scores.c.number)
        for score in connection.execute(select(scores).where(scores.c.record.in_(ids)).order_by(*order)).mappings():
            scored[score["record"]].append({field.name: score[field.name] for field in _SCORE})
        said = labels_of(connection, ids)
    rows = [
        {
            **{name: row._mapping[name] for name in _PLAIN},
            "scores": scored[row.id],
            "labels": said.get(row.id, []),
            "record": row.body,
        }
        for row in found
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA), ids[-1]
