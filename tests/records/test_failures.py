"""A database that is locked, full, dead, read only or not there yet costs records at most, and each is counted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from records_support.faults import full_disk, locked
from records_support.outcomes import outcome
from records_support.postgres import Postgres
from records_support.waiting import wait_until
from records_support.writers import FAST, StartWriter, assert_adds_up, everything
from sqlalchemy import update

from pilothouse.core.errors import StartupError
from pilothouse.records import database
from pilothouse.records.database import DatabaseError
from pilothouse.records.filters import Filters
from pilothouse.records.schema import versions
from pilothouse.records.store import RecordStore
from pilothouse.records.writer import RecordWriter


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)


def ids(start: int, stop: int) -> set[str]:
    return {f"chatcmpl-{i}" for i in range(start, stop)}


def observe(writer: RecordWriter, start: int, stop: int) -> None:
    for i in range(start, stop):
        writer.observe(outcome(i))


@pytest.mark.usefixtures("impatient")
def test_a_locked_file_is_waited_for(
    tmp_path: Path, start_writer: StartWriter, caplog: pytest.LogCaptureFixture
) -> None:
    # Other libraries in the process may have asked for less.
    caplog.set_level(logging.WARNING)
    path = tmp_path / "records.sqlite"
    store = RecordStore(f"sqlite:///{path}")
    writer = start_writer("", store=store, limits=replace(FAST, queue_records=30, batch_records=10))
    observe(writer, 0, 5)
    assert writer.flush(30)
    with locked(path):
        observe(writer, 5, 15)
        wait_until(lambda: writer.failing)
        observe(writer, 15, 60)
        assert_adds_up(writer.counts(), written=5, queued=40, queue_full=15)
        store.close()
        assert set(everything(store)) == ids(0, 5), "it can still be read, by new connections too"
        assert not writer.flush(30), "nobody waits for a database that fails"
    wait_until(lambda: not writer.counts()["queued"])
    assert_adds_up(writer.counts(), written=45, queue_full=15)
    assert set(everything(store)) == ids(0, 45)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "said once, and when it is over"


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_costs_batches_that_are_counted(tmp_path: Path, start_writer: StartWriter) -> None:
    store = RecordStore(f"sqlite:///{tmp_path / 'records.sqlite'}")
    writer = start_writer("", store=store, limits=replace(FAST, patience=0.1, batch_records=50))
    observe(writer, 0, 50)
    assert writer.flush(30)
    with full_disk(store):
        observe(writer, 50, 250)
        wait_until(lambda: writer.counts()["database"] >= 100)
    wait_until(lambda: not writer.counts()["queued"])
    observe(writer, 250, 300)
    wait_until(lambda: not writer.counts()["queued"])
    counts = writer.counts()
    lost = counts["database"]
    assert_adds_up(counts, written=300 - lost, database=lost)
    assert set(everything(store)) == ids(0, 50) | ids(50 + lost, 300)


def test_a_database_that_dies_is_written_to_when_it_lives_again(postgres: Postgres, start_writer: StartWriter) -> None:
    url = postgres.make_database()
    store = RecordStore(url)
    writer = start_writer("", store=store, limits=replace(FAST, batch_records=20))
    observe(writer, 0, 50)
    assert writer.flush(30)
    postgres.stop()
    observe(writer, 50, 150)
    wait_until(lambda: writer.failing)
    with pytest.raises(DatabaseError):
        store.page(Filters())
    postgres.start()
    wait_until(lambda: not writer.counts()["queued"])
    assert_adds_up(writer.counts(), written=150)
    assert set(everything(store)) == ids(0, 150), "nothing is lost, nothing is there twice"


def test_a_frozen_database_holds_up_nobody_but_the_writer(postgres: Postgres, start_writer: StartWriter) -> None:
    store = RecordStore(postgres.make_database())
    writer = start_writer("", store=store, limits=replace(FAST, queue_records=30, batch_records=10))
    observe(writer, 0, 5)
    assert writer.flush(30)
    postgres.freeze()
    try:
        observe(writer, 5, 6)
        # One is on its way; of the others thirty may wait.
        wait_until(lambda: not writer._queue._waiting)
        observe(writer, 6, 50)
        assert_adds_up(writer.counts(), written=5, queued=31, queue_full=14)
    finally:
        postgres.thaw()
    wait_until(lambda: not writer.counts()["queued"])
    assert_adds_up(writer.counts(), written=36, queue_full=14)
    assert set(everything(store)) == ids(0, 36), "nothing of what waited is lost, or there twice"


def test_a_database_that_is_not_there_at_the_start_is_waited_for(
    postgres: Postgres, start_writer: StartWriter, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.make_database()
    postgres.stop()
    store = RecordStore(url)
    writer = start_writer("", store=store)
    assert writer.failing
    assert len(caplog.records) == 1
    postgres.start()
    wait_until(lambda: not writer.failing)
    assert store.page(Filters()).records == [], "the tables are there before anything is written"
    observe(writer, 0, 10)
    assert writer.flush(30)
    assert set(everything(store)) == ids(0, 10)


def test_a_folder_that_cannot_be_made_does_not_end_the_start(tmp_path: Path, start_writer: StartWriter) -> None:
    in_the_way = tmp_path / "folder"
    in_the_way.write_text("a file")
    store = RecordStore(f"sqlite:///{in_the_way}/records.sqlite")
    writer = start_writer("", store=store)
    observe(writer, 0, 10)
    assert writer.failing
    in_the_way.unlink()
    wait_until(lambda: not writer.counts()["queued"])
    assert set(everything(store)) == ids(0, 10)


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_what_cannot_be_written_costs_records_only(
    tmp_path: Path, start_writer: StartWriter, content: bytes | None
) -> None:
    path = tmp_path / "records.sqlite"
    url = f"sqlite:///{path}"
    if content is None:
        made = RecordStore(url)
        made.open()
        made.close()
        url = f"sqlite:///file:{path}?mode=ro&uri=true"
    else:
        path.write_bytes(content)
    writer = start_writer(url, limits=replace(FAST, patience=0.05))
    observe(writer, 0, 10)
    wait_until(lambda: writer.counts()["database"] == 10)
    observe(writer, 10, 15)
    writer.close()
    counts = writer.counts()
    assert_adds_up(counts, **{what: counts[what] for what in ("database", "shutdown") if counts[what]})
    assert content is None or path.read_bytes() == content


def test_the_end_does_not_wait_for_a_dead_database(postgres: Postgres, start_writer: StartWriter) -> None:
    writer = start_writer(postgres.make_database())
    postgres.stop()
    observe(writer, 0, 10)
    wait_until(lambda: writer.failing)
    writer.close(0.1)
    assert_adds_up(writer.counts(), shutdown=10)


def test_the_database_of_a_newer_release_ends_the_start(url: str) -> None:
    store = RecordStore(url)
    store.open()
    with store.engine.begin() as connection:
        connection.execute(update(versions).values(version=99))
    writer = RecordWriter(store, limits=FAST)
    with pytest.raises(StartupError, match="version 99"):
        writer.start()
    writer.observe(outcome(1))
    assert_adds_up(writer.counts(), shutdown=1)


CHILD = """
import sys, time
from records_support.outcomes import outcome
from pilothouse.records.queue import WriterLimits
from pilothouse.records.store import RecordStore
from pilothouse.records.writer import RecordWriter

written = 0
def told(what, n):
    global written
    written += n
    print(what, written, writer.counts()["observed"], flush=True)

writer = RecordWriter(RecordStore(sys.argv[1]), limits=WriterLimits(batch_records=20, interval=0.05), on_change=told)
writer.start()
for i in range(int(sys.argv[2])):
    writer.observe(outcome(i))
    time.sleep(0.001)
"""


def child(url: str, n: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, url, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_process_loses_the_last_batch_at_most(url: str) -> None:
    with child(url, 1_000_000) as process:
        assert process.stdout is not None
        lines = [next(process.stdout).split() for _ in range(8)]
        process.kill()
        lines += [line.split() for line in process.stdout.read().splitlines() if line.count(" ") == 2]
    assert {what for what, _, _ in lines} == {"written"}
    store = RecordStore(url)
    stored = everything(store)
    store.close()
    n = len(stored)
    assert n >= int(lines[-1][1]) > 0, "what was said to be written is there"
    assert set(stored) == ids(0, n), "and nothing is missing before what was lost"
    assert int(lines[-1][2]) - int(lines[-1][1]) <= 20, "no more than a batch waited"


def test_a_process_that_ends_without_a_word_writes_what_waits(url: str) -> None:
    with child(url, 130) as process:
        process.communicate(timeout=60)
    store = RecordStore(url)
    assert set(everything(store)) == ids(0, 130)
    store.close()
