"""A Parquet file says what the list says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from records_support.outcomes import expected, outcome

from pilothouse.records import export as export_module
from pilothouse.records.database import DatabaseError
from pilothouse.records.filters import Filters
from pilothouse.records.labels import Label
from pilothouse.records.rows import make_row
from pilothouse.records.store import RecordStore

REQUESTS = [outcome(i) for i in range(250)]


@pytest.fixture
def filled(store: RecordStore) -> RecordStore:
    store.write([make_row(request) for request in REQUESTS])
    for request in REQUESTS[::7]:
        if request.choices[0].probes:
            store.label(request.response_id, Label(request.choices[0].probes[0].probe, True, "me"))
    return store


@pytest.mark.parametrize("filters", [Filters(), Filters(flagged=True, probe="risk"), Filters(probe="unknown")])
def test_the_file_equals_the_list(
    filled: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: Filters
) -> None:
    monkeypatch.setattr(export_module, "GROUP_ROWS", 64)
    path = tmp_path / "records.parquet"
    n = filled.export(filters, path)
    listed = list(reversed(filled.page(filters, limit=1000).records))
    table = pq.read_table(path)
    assert table.num_rows == n == len(listed)
    assert pq.ParquetFile(path).num_row_groups == -(-n // 64), "never more than some records in memory"
    by_id = {request.response_id: request for request in REQUESTS}
    for row, record in zip(table.to_pylist(), listed, strict=True):
        assert {**json.loads(row["record"]), "replaced": 0, "labels": row["labels"]} == record
        request = by_id[row["response_id"]]
        assert [(s["probe"], s["score"], s["statistic"], s["level"], s["reason"]) for s in row["scores"]] == [
            (p.probe, p.score, p.statistic, p.level, p.reason) for choice in request.choices for p in choice.probes
        ]
        for name in ("time", "model", "route", "steering", "flagged", "error", "trace_id", "seconds"):
            assert row[name] == expected(request)[name]
    whole = io.BytesIO()
    assert filled.export(filters, whole) == n
    assert whole.getvalue() == b"".join(filled.exported(filters)) == path.read_bytes()


def test_large_records_make_small_groups(filled: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "GROUP_BYTES", 1)
    whole = io.BytesIO()
    filled.export(Filters(until=REQUESTS[10].created), whole)
    assert pq.ParquetFile(whole).num_row_groups == 10


def test_a_file_that_could_not_be_finished_is_not_there(filled: RecordStore, tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    path.write_bytes(b"older")
    with filled.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE labels")
    with pytest.raises(DatabaseError):
        filled.export(Filters(), path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir() if "parquet" in file.name] == [
        (path.name, b"older")
    ]
