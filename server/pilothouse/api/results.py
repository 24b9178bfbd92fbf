"""The records of recent responses, for clients that drop the keys we add to choices."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from pilothouse.api.names import quote
from pilothouse.core.errors import NotFound
from pilothouse.core.listing import Piece, json_of, json_pieces, slim, texts_of
from pilothouse.core.record_body import record_body
from pilothouse.core.records import RequestOutcome


class _Kept(NamedTuple):
    """A record's JSON in pieces, how many bytes they take at most, and how many earlier ones under its id it
    replaced."""

    pieces: list[Piece]
    size: int
    replaced: int


class ResultsStore:
    """Records by response id, bounded in number and in bytes, the longest unread given up first. An `OutcomeSink`.

    They are kept as JSON, a tenth of the memory of the objects, and lists of tokens as numbers, an eighth of that: most
    records are never read, and memory that grows by a megabyte a response has to be found by the operating system, page
    by page, while other responses wait. A client may choose its request's id, so two responses may share one: the
    newest record is kept, and counts those that it took the place of.

    max_records: 0 keeps none.
    """

    def __init__(self, max_records: int = 10_000, max_bytes: int = 256 * 1024 * 1024) -> None:
        self.max_records = max_records
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: OrderedDict[str, _Kept] = OrderedDict()

    def observe(self, outcome: RequestOutcome) -> None:
        """Keep the record of a response that has an id."""
        if not outcome.response_id or not self.max_records:
            return
        replaced = 0
        if earlier := self._records.pop(outcome.response_id, None):
            replaced = earlier.replaced + 1
            self._bytes -= earlier.size
        pieces, size = slim(json_pieces(record_body(outcome, replaced)))
        self._bytes += size
        self._records[outcome.response_id] = _Kept(pieces, size, replaced)
        while len(self._records) > self.max_records or (self._bytes > self._max_bytes and len(self._records) > 1):
            _, old = self._records.popitem(last=False)
            self._bytes -= old.size

    def read(self, response_id: str) -> bytes:
        """The record as JSON; NotFound when there is none, or no longer."""
        found = self.find(response_id)
        if found is None:
            why = "it is unknown, unscored or too old" if self.max_records else "this server keeps none"
            raise NotFound(f"there is no record of response {quote(response_id)}: {why}")
        return found

    def find(self, response_id: str) -> bytes | None:
        """The record as JSON; None when there is none, or no longer."""
        if response_id not in self._records:
            return None
        self._records.move_to_end(response_id)
        return "".join(texts_of(self._records[response_id].pieces)).encode()


def newest(records: Sequence[bytes]) -> bytes:
    """Of the records under one id that several API servers have, the newest, which counts the others as replaced."""
    if len(records) == 1:
        return records[0]
    found = sorted(map(json.loads, records), key=lambda record: record["time"])
    replaced = sum(record["replaced"] for record in found) + len(found) - 1
    return json_of({**found[-1], "replaced": replaced}).encode()
