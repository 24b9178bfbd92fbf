"""One record, and all that waits: from this API server's memory, its peers', and the database."""

import json
from typing import Any

from pilothouse.api.errors import BusyError
from pilothouse.api.results import newest
from pilothouse.api.state import ApiState
from pilothouse.core.errors import NotFound
from pilothouse.records.database import DatabaseError
from pilothouse.records.service import Records

FLUSH_SECONDS = 3.0
"""How long a question may wait for the records of what was answered before it."""
BRIEFLY = 0.5
"""The same where memory has an answer, and the database could only add to it."""


def records_of(state: ApiState) -> Records:
    """The server's database of records; NotFound where it has none."""
    if state.records is None:
        raise NotFound("this server keeps no database of records (--records none)")
    return state.records


def flush(state: ApiState, seconds: float = FLUSH_SECONDS) -> None:
    """Have what was answered so far in the database, at any API server of this server, if it takes no long. Blocks."""
    if state.records is not None:
        state.records.writer.flush(seconds)
    if state.peers is not None:
        state.peers.ask({"do": "flush"})


def read_record(state: ApiState, response_id: str) -> bytes:
    """The record as JSON; NotFound. Blocks.

    It has `labels` where there is a database: None when that does not answer, for what is in memory can be read anyway.
    """
    kept = _in_memory(state, response_id)
    if state.records is None:
        return kept or state.results.read(response_id)
    stored, failure = _in_database(state, state.records, response_id, FLUSH_SECONDS if kept is None else BRIEFLY)
    if kept is None and stored is None:
        if failure is not None:
            raise BusyError(f"the database of records does not answer: {failure}")
        return state.results.read(response_id)
    return _encoded(_merged(None if kept is None else json.loads(kept), stored, failure))


def _in_memory(state: ApiState, response_id: str) -> bytes | None:
    found = [state.results.find(response_id)]
    if state.peers is not None:
        asked = state.peers.ask({"do": "record", "id": response_id})
        found += [text.encode() for text in asked if text is not None]
    records = [record for record in found if record is not None]
    return newest(records) if records else None


def _in_database(
    state: ApiState, records: Records, response_id: str, patience: float
) -> tuple[dict[str, Any] | None, DatabaseError | None]:
    flush(state, patience)
    try:
        return records.store.find(response_id), None
    except DatabaseError as error:
        return None, error


def _merged(
    kept: dict[str, Any] | None, stored: dict[str, Any] | None, failure: DatabaseError | None
) -> dict[str, Any]:
    """The newer of the two; of the same response, what is stored, which has its labels, and its texts if any are."""
    if stored is None:
        return {**(kept or {}), "labels": None if failure is not None else []}
    if kept is None:
        return stored
    replaced = max(kept["replaced"], stored["replaced"])
    if kept["time"] > stored["time"]:
        return {**kept, "replaced": replaced, "labels": []}
    if kept["time"] == stored["time"]:
        # The same: memory still knows which tokens they were.
        return {**stored, "choices": kept["choices"], "replaced": replaced}
    return {**stored, "replaced": replaced}


def _encoded(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # JSON escapes may have brought what UTF-8 cannot carry.
    return text.encode("utf-8", "backslashreplace")
