"""The writer: all that is observed is written or dropped, for one reason, and counted."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from dataclasses import replace

import pytest
from records_support.faults import Gate
from records_support.outcomes import expected, outcome, scored
from records_support.waiting import wait_until
from records_support.writers import FAST, StartWriter, assert_adds_up, everything

from pilothouse.core.records import ChoiceOutcome, ProbeOutcome
from pilothouse.records.queue import WriterLimits
from pilothouse.records.rows import as_json, make_row
from pilothouse.records.store import RecordStore
from pilothouse.records.weight import weight
from pilothouse.records.writer import RecordWriter


def test_ten_thousand_records_are_all_there(url: str, start_writer: StartWriter) -> None:
    told: Counter[str] = Counter()
    store = RecordStore(url)
    writer = start_writer(url, store=store, on_change=lambda what, n: told.update({what: n}))
    requests = [outcome(i) for i in range(10_000)]
    for request in requests:
        writer.observe(request)
    assert writer.flush(60)
    assert everything(store) == {request.response_id: expected(request) for request in requests}
    assert_adds_up(writer.counts(), written=10_000)
    assert told == {"written": 10_000}


def test_the_end_writes_what_waits(url: str, start_writer: StartWriter) -> None:
    writer = start_writer(url, limits=WriterLimits(interval=1000))
    requests = [outcome(i) for i in range(700)]
    for request in requests:
        writer.observe(request)
    writer.close()
    writer.observe(outcome(1000))
    assert_adds_up(writer.counts(), written=700, shutdown=1)
    store = RecordStore(url)
    assert everything(store) == {request.response_id: expected(request) for request in requests}
    store.close()


def test_a_slow_database_costs_records_that_are_counted(url: str, start_writer: StartWriter) -> None:
    store = RecordStore(url)
    gate = Gate(store)
    limits = replace(FAST, queue_records=10, batch_records=4, interval=0)
    told: Counter[str] = Counter()
    writer = start_writer(url, store=store, limits=limits, on_change=lambda what, n: told.update({what: n}))
    writer.observe(outcome(0))
    assert gate.reached.wait(30)
    for i in range(1, 41):
        writer.observe(outcome(i))
    assert_adds_up(writer.counts(), queued=11, queue_full=30)
    assert not writer.flush(0.01)
    gate.open.set()
    assert writer.flush(30)
    assert_adds_up(writer.counts(), written=11, queue_full=30)
    assert set(everything(store)) == {f"chatcmpl-{i}" for i in range(11)}
    assert told == {"written": 11, "queue_full": 30}


def test_what_waits_is_bounded_in_bytes(url: str, start_writer: StartWriter) -> None:
    store = RecordStore(url)
    gate = Gate(store)
    limits = replace(FAST, queue_bytes=10_000, record_bytes=6_000, interval=0)
    writer = start_writer(url, store=store, limits=limits)
    writer.observe(scored(0, 0.5))
    assert gate.reached.wait(30)
    for i in range(1, 5):
        writer.observe(scored(i, 0.5, body=({"index": 0, "text": "x" * 3_500},)))
    writer.observe(scored(5, 0.5, body=({"index": 0, "text": "x" * 7_000},)))
    assert_adds_up(writer.counts(), queued=3, queue_full=2, too_large=1)
    gate.open.set()
    assert writer.flush(30)
    # Its weight counts characters, its size bytes.
    writer.observe(scored(6, 0.5, body=({"index": 0, "text": "漢" * 3_000},)))
    assert writer.flush(30)
    assert_adds_up(writer.counts(), written=3, queue_full=2, too_large=2)


@pytest.mark.parametrize(
    "choice",
    [
        ChoiceOutcome((ProbeOutcome("risk", 0.5, None, False, 2**70),)),
        ChoiceOutcome((ProbeOutcome("risk", "high", None, False, None),)),  # type: ignore[arg-type]
    ],
)
def test_records_that_no_database_takes_are_parted_from_the_others(
    url: str, start_writer: StartWriter, caplog: pytest.LogCaptureFixture, choice: ChoiceOutcome
) -> None:
    store = RecordStore(url)
    writer = start_writer(url, store=store, limits=replace(FAST, interval=1000))
    bad = {7, 8, 30}
    with caplog.at_level(logging.ERROR):
        for i in range(40):
            writer.observe(outcome(i, choices=(choice,), body=({"text": "secret"},)) if i in bad else outcome(i))
        assert writer.flush(30)
    assert_adds_up(writer.counts(), written=37, database=3)
    assert set(everything(store)) == {f"chatcmpl-{i}" for i in range(40) if i not in bad}
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text


def test_records_that_are_no_json_are_dropped(url: str, start_writer: StartWriter) -> None:
    store = RecordStore(url)
    writer = start_writer(url, store=store)
    for i, value in enumerate((math.nan, object(), 1.0)):
        writer.observe(scored(i, 0.5, body=({"index": 0, "value": value},)))
    assert writer.flush(30)
    assert_adds_up(writer.counts(), written=2, database=1)
    values = [record["choices"][0]["value"] for record in everything(store).values()]
    assert sorted(values, key=str) == [1.0, None]


def test_a_listener_that_fails_disturbs_nobody(url: str, start_writer: StartWriter) -> None:
    def fail(what: str, n: int) -> None:
        raise RuntimeError(what)

    writer = start_writer(url, on_change=fail, limits=replace(FAST, record_bytes=6_000))
    writer.observe(scored(0, 0.5))
    writer.observe(scored(1, 0.5, body=({"text": "x" * 7_000},)))
    assert writer.flush(30)
    assert_adds_up(writer.counts(), written=1, too_large=1)


def test_flushing_does_not_wait_for_the_interval(url: str, start_writer: StartWriter) -> None:
    writer = start_writer(url, limits=WriterLimits(interval=1000))
    for i in range(3):
        writer.observe(outcome(i))
        assert writer.flush(30)
    assert writer.flush(0), "there is nothing to wait for"
    assert_adds_up(writer.counts(), written=3)


def test_a_full_batch_does_not_wait_for_the_interval(url: str, start_writer: StartWriter) -> None:
    writer = start_writer(url, limits=WriterLimits(interval=1000, batch_records=5))
    for i in range(7):
        writer.observe(outcome(i))
    wait_until(lambda: writer.counts()["written"] >= 5)
    assert_adds_up(writer.counts(), written=5, queued=2)


def test_a_writer_that_never_began_drops_all(url: str) -> None:
    writer = RecordWriter(RecordStore(url))
    writer.observe(outcome(1))
    writer.close()
    assert_adds_up(writer.counts(), shutdown=1)


def test_the_weight_is_about_the_size() -> None:
    tokens = [
        {"token": f" word{i}", "token_id": i, "logit": 0.1234567890123 * i, "score": 1 / (i + 3)} for i in range(400)
    ]
    many = {"index": 0, "probes": {name: {"score": 0.5, "tokens": tokens} for name in ("risk", "truthfulness")}}
    long = {"prompts": ["short", "x" * 20_000], "messages": [{"content": "y" * n} for n in range(300)]}
    for request in (outcome(1), scored(2, 0.5, body=(many, many)), scored(3, 0.5, text=long)):
        size = len(as_json(make_row(request).response["body"])) + len(json.dumps(request.text))
        assert size / 2.5 < weight(request) < 2.5 * size
