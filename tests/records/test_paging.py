"""Lists: pages that together are the whole, in order, once; and filters, against filters by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records_support.outcomes import MODELS, PROBES, ROUTES, STEERING, expected, outcome, scored
from sqlalchemy import delete

from pilothouse.core.errors import BadRequest
from pilothouse.core.records import ProbeOutcome, RequestOutcome
from pilothouse.records import store as store_module
from pilothouse.records.filters import Cursor, Filters, Order
from pilothouse.records.labels import Label
from pilothouse.records.rows import make_row
from pilothouse.records.schema import labels, responses, scores
from pilothouse.records.store import RecordStore

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fill(store: RecordStore, requests: Sequence[RequestOutcome]) -> None:
    with store.engine.begin() as connection:
        for table in (labels, scores, responses):
            connection.execute(delete(table))
    store.write([make_row(request) for request in requests])


def pages(store: RecordStore, filters: Filters, order: Order, limit: int) -> list[list[dict[str, Any]]]:
    found, after = [], None
    while True:
        page = store.page(filters, order, after, limit)
        found.append(page.records)
        if page.next is None:
            return found
        after = Cursor.parse(str(page.next), order)


def meets(filters: Filters, request: RequestOutcome, said: dict[str, bool]) -> list[ProbeOutcome] | None:
    """The probes that meet the filters, or None where the request does not. said: labels by probe."""
    plain = ((filters.model, request.model_name), (filters.steering, request.steering), (filters.route, request.route))
    if any(wanted is not None and wanted != value for wanted, value in plain):
        return None
    if not (filters.since or -math.inf) <= request.created < (math.inf if filters.until is None else filters.until):
        return None
    probes = [p for choice in request.choices for p in choice.probes]
    if filters.probe is None and filters.flagged not in (None, any(p.flagged for p in probes)):
        return None
    found = [
        p
        for p in probes
        if filters.probe in (None, p.probe)
        and (filters.probe is None or filters.flagged in (None, p.flagged))
        and (filters.min_score is None or (p.score is not None and p.score >= filters.min_score))
        and (filters.max_score is None or (p.score is not None and p.score <= filters.max_score))
    ]
    if (filters.probe, filters.min_score, filters.max_score) != (None, None, None) and not found:
        return None
    values = [value for name, value in said.items() if filters.probe in (None, name)]
    match filters.label:
        case "true" if True not in values:
            return None
        case "false" if False not in values:
            return None
        case "any" if not values:
            return None
        case "none" if values:
            return None
    return found


FILTERS = st.builds(
    Filters,
    flagged=st.sampled_from([None, True, False]),
    probe=st.sampled_from([None, *PROBES, "unknown"]),
    model=st.sampled_from([None, None, *MODELS]),
    steering=st.sampled_from([None, None, None, *STEERING]),
    route=st.sampled_from([None, None, *ROUTES]),
    since=st.sampled_from([None, None, 1_700_000_002.0]),
    until=st.sampled_from([None, None, 1_700_000_005.0]),
    label=st.sampled_from([None, None, None, "true", "false", "any", "none"]),
    min_score=st.sampled_from([None, None, 0.3]),
    max_score=st.sampled_from([None, None, 0.6]),
)
REQUESTS = [outcome(i) for i in range(60)]


@pytest.fixture
def labelled_store(store: RecordStore) -> tuple[RecordStore, dict[str, dict[str, bool]]]:
    """With all requests, every third of which is labelled; the labels by response and probe."""
    fill(store, REQUESTS)
    said: dict[str, dict[str, bool]] = {}
    for i, request in enumerate(REQUESTS):
        said[request.response_id] = {}
        if i % 3 == 0 and request.choices[0].probes:
            name = request.choices[0].probes[0].probe
            store.label(request.response_id, Label(name, i % 2 == 0, "me"))
            said[request.response_id][name] = i % 2 == 0
    return store, said


@SLOW
@given(filters=FILTERS, order=st.sampled_from(["time", "score", "score_asc"]), limit=st.integers(1, 25))
def test_a_list_is_what_filters_by_hand_leave(
    labelled_store: tuple[RecordStore, dict[str, dict[str, bool]]], filters: Filters, order: Order, limit: int
) -> None:
    store, said = labelled_store
    if order != "time" and filters.probe is None:
        filters = dataclasses.replace(filters, probe="risk")
    kept = [(r, found) for r in REQUESTS if (found := meets(filters, r, said[r.response_id])) is not None]
    if order == "time":
        keys = {r.response_id: r.created for r, _ in kept}
    else:
        extreme = max if order == "score" else min
        known = {r.response_id: [p.score for p in found if p.score is not None] for r, found in kept}
        keys = {name: extreme(values) for name, values in known.items() if values}
    listed = pages(store, filters, order, limit)
    found_ids = [record["id"] for page in listed for record in page]
    assert sorted(found_ids) == sorted(keys)
    sign = 1 if order == "score_asc" else -1
    in_order = [sign * keys[name] for name in found_ids]
    assert in_order == sorted(in_order)
    assert all(len(page) == limit for page in listed[:-1])
    assert listed[-1] or len(listed) == 1


@SLOW
@given(
    times=st.lists(st.sampled_from([0.0, 0.1, 1.0, 1e9, 1.7e9 + 1 / 3]), max_size=20),
    limit=st.integers(1, 6),
    order=st.sampled_from(["time", "score"]),
)
def test_pages_over_equal_keys_lose_and_repeat_nothing(
    store: RecordStore, times: list[float], limit: int, order: Order
) -> None:
    requests = [scored(i, (i % 3) / 3, created=time) for i, time in enumerate(times)]
    fill(store, requests)
    found = [record for page in pages(store, Filters(probe="risk"), order, limit) for record in page]
    assert sorted(record["id"] for record in found) == sorted(request.response_id for request in requests)
    assert all(record in map(expected, requests) for record in found)
    keys = [record["time"] if order == "time" else record["choices"][0]["probes"]["risk"]["score"] for record in found]
    assert keys == sorted(keys, reverse=True)


def test_what_comes_between_two_pages_changes_nothing_of_the_rest(store: RecordStore) -> None:
    fill(store, REQUESTS[:10])
    first = store.page(Filters(), limit=4)
    store.write([make_row(request) for request in REQUESTS[10:14]])
    rest = store.page(Filters(), "time", first.next, 100)
    assert [r["id"] for r in first.records + rest.records] == [r.response_id for r in reversed(REQUESTS[:10])]


def test_a_page_is_bounded_by_its_bytes_too(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [scored(i, 0.5, body=({"index": 0, "text": "x" * 1000},)) for i in range(5)]
    fill(store, large)
    monkeypatch.setattr(store_module, "_PAGE_BYTES", 3000)
    assert [len(page) for page in pages(store, Filters(), "time", 10)] == [2, 2, 1]
    monkeypatch.setattr(store_module, "_PAGE_BYTES", 10)
    assert [len(page) for page in pages(store, Filters(), "time", 10)] == [1] * 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "é",
        "x" * 10_000,
        "bnVsbA",
        "W10",
        "WyJ0aW1lIiwgMS4wXQ",  # two entries
        "WyJ0aW1lIiwgdHJ1ZSwgMV0",  # a truth as a key
        "WyJ0aW1lIiwgSW5maW5pdHksIDFd",
        "WyJ0aW1lIiwgMS4wLCAtMV0",
        "WyJ0aW1lIiwgMS4wLCA5OTk5OTk5OTk5OTk5OTk5OTk5OTk5XQ",
        "W1sidGltZSJdLCAxLjAsIDFd",
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Cursor.parse(text, "time")
    assert caught.value.param == "after"


def test_a_cursor_is_of_one_order() -> None:
    cursor = Cursor("time", 1.0, 2)
    assert Cursor.parse(str(cursor), "time") == cursor
    with pytest.raises(BadRequest, match="order 'time'"):
        Cursor.parse(str(cursor), "score")
