"""`pilothouse records`: what the interface shows, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from records_support.outcomes import outcome, scored
from typer.testing import CliRunner, Result

from pilothouse.cli.main import app
from pilothouse.core.errors import BadRequest, PilothouseError, StartupError
from pilothouse.records.labels import Label
from pilothouse.records.rows import make_row
from pilothouse.records.store import RecordStore


@pytest.fixture
def url(tmp_path: Path) -> str:
    store = RecordStore(f"sqlite:///{tmp_path / 'records.sqlite'}")
    store.open()
    requests = [scored(i, i / 10, name="risk") for i in range(10)]
    store.write(
        [make_row(request) for request in [*requests, outcome(10, choices=(), body=({"index": 0},), error="odd")]]
    )
    store.label("chatcmpl-7", Label("risk", True, "me"))
    store.close()
    return f"sqlite:///{tmp_path / 'records.sqlite'}"


def run(*words: str) -> Result:
    # A wide terminal: rows are not broken.
    return CliRunner().invoke(app, ["records", *words], env={"COLUMNS": "200"})


def test_a_list_for_people_and_one_for_programs(url: str) -> None:
    shown = run("list", "--records", url, "--limit", "5")
    assert shown.exit_code == 0, shown.output
    rows = [line for line in shown.output.splitlines() if "chatcmpl-" in line]
    assert [row.split("chatcmpl-")[1].split()[0] for row in rows] == ["10", "9", "8", "7", "6"]
    assert "odd" in rows[0]
    assert "0.700" in rows[3]
    assert "yes" in rows[3]
    assert "me: true" in rows[3]
    assert "2023-11-14 22:13:20" in rows[3]
    assert "the first 5" in shown.output
    lines = run("list", "--records", url, "--json", "--probe", "risk", "--flagged", "--order", "score_asc").output
    assert [json.loads(line)["id"] for line in lines.splitlines()] == [f"chatcmpl-{i}" for i in range(5, 10)]
    lines = run(
        "list", "--records", url, "--json", "--label", "true", "--min-score", "0.1", "--since", "2001-01-01"
    ).output
    assert [json.loads(line)["id"] for line in lines.splitlines()] == ["chatcmpl-7"]


def test_a_file(url: str, tmp_path: Path) -> None:
    out = tmp_path / "records.parquet"
    done = run("export", "--records", url, "--out", str(out), "--no-flagged", "--probe", "risk")
    assert done.exit_code == 0, done.output
    assert "5 records" in done.output
    assert [row["response_id"] for row in pq.read_table(out).to_pylist()] == [f"chatcmpl-{i}" for i in range(5)]


def test_trimming(url: str) -> None:
    assert "deleted 0 records" in run("trim", "--records", url, "--records-days", "100000").output
    assert "deleted 11 records" in run("trim", "--records", url).output
    assert run("list", "--records", url, "--json").output == ""


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["list", "--since", "yesterday"], BadRequest, "since"),
        (["list", "--label", "maybe"], BadRequest, "label"),
        (["list", "--order", "score"], PilothouseError, "--probe"),
        (["trim", "--records-mb", "0"], StartupError, "more than 0"),
        (["export", "--out", "/no/such/folder/f.parquet"], PilothouseError, "No such file"),
    ],
)
def test_what_cannot_be_done_is_said(url: str, words: list[str], error: type[Exception], says: str) -> None:
    failed = run(*words, "--records", url)
    assert failed.exit_code == 1
    assert isinstance(failed.exception, error)
    assert says in str(failed.exception)


def test_looking_makes_no_database(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    for words in (["list"], ["export", "--out", str(tmp_path / "f.parquet")], ["trim"]):
        failed = run(*words, "--records", f"sqlite:///{path}")
        assert failed.exit_code == 1
        assert isinstance(failed.exception, PilothouseError)
    assert not list(tmp_path.iterdir())
