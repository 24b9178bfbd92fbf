"""The records of recent responses, for clients that drop the keys we add to choices."""

import json
from collections import OrderedDict
from typing import Any

from pilothouse.api.names import quote
from pilothouse.core.errors import NotFound
from pilothouse.core.records import RequestOutcome


class ResultsStore:
    """Least recently read records, bounded in number and in bytes. An `OutcomeSink`.

    They are kept as JSON: a tenth of the memory of the objects, and ready to be sent.
    """

    def __init__(self, max_records: int = 10_000, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: OrderedDict[str, bytes] = OrderedDict()

    def observe(self, outcome: RequestOutcome) -> None:
        """Keep the record of a response that has an id."""
        if not outcome.response_id:
            return
        text = json.dumps(_record(outcome), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        self._bytes += len(text) - len(self._records.pop(outcome.response_id, b""))
        self._records[outcome.response_id] = text
        while len(self._records) > self._max_records or (self._bytes > self._max_bytes and len(self._records) > 1):
            _, old = self._records.popitem(last=False)
            self._bytes -= len(old)

    def read(self, response_id: str) -> bytes:
        """The record as JSON; NotFound when there is none, or no longer."""
        if response_id not in self._records:
            raise NotFound(f"there is no record of response {quote(response_id)}: it is unknown, unscored or too old")
        self._records.move_to_end(response_id)
        return self._records[response_id]


def _record(outcome: RequestOutcome) -> dict[str, Any]:
    return {
        "id": outcome.response_id,
        "object": "probe.result",
        "created": int(outcome.created),
        "model": outcome.model_name,
        "route": outcome.route,
        "steering": outcome.steering,
        "error": outcome.error,
        "choices": list(outcome.body),
    }
