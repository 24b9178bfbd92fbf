"""Writers for tests, and what is left of what they were given."""

from collections.abc import Mapping
from typing import Any, Protocol

from pilothouse.records.filters import Filters
from pilothouse.records.queue import WriterLimits
from pilothouse.records.store import RecordStore
from pilothouse.records.writer import RecordWriter

FAST = WriterLimits(interval=0.02, first_pause=0.01, longest_pause=0.05)
"""Outages of tests are short."""


class StartWriter(Protocol):
    """Starts a writer that is closed after the test."""

    def __call__(self, url: str, **more: Any) -> RecordWriter: ...


def everything(store: RecordStore) -> dict[str, dict[str, Any]]:
    """All records by their ids, each of which is there once."""
    found: dict[str, dict[str, Any]] = {}
    after = None
    while True:
        page = store.page(Filters(), "time", after, 1000)
        for record in page.records:
            assert record["id"] not in found
            found[record["id"]] = record
        if page.next is None:
            return found
        after = page.next


def assert_adds_up(counts: Mapping[str, int], **expected_counts: int) -> None:
    """All that was observed became something, and these are all that are not zero."""
    assert counts["observed"] == sum(n for what, n in counts.items() if what != "observed")
    assert {what: n for what, n in counts.items() if n and what != "observed"} == expected_counts
