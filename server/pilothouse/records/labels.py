"""What people and checkers found of scored choices."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from pilothouse.core.errors import BadRequest
from pilothouse.records.rows import storable
from pilothouse.records.schema import labels, responses, scores


@dataclass(frozen=True)
class Label:
    """What a source found of one choice: whether that which the probe scores is so."""

    probe: str
    value: bool
    source: str
    choice: int = 0


class StoredLabel(NamedTuple):
    """A label as records show it, and of what it is: the model, and whether the probe had flagged the choice."""

    shown: dict[str, Any]
    model: str
    flagged: bool


def put_label(connection: Connection, record: int, label: Label, now: float) -> StoredLabel:
    """Store it, in place of what its source said before; BadRequest for a choice or a probe that the record does not
    have."""
    flagged = _flagged(connection, record, label)
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = {"value": label.value, "time": now}
    key = {
        "record": record,
        "choice": label.choice,
        "probe": storable(label.probe),
        "source": storable(label.source),
    }
    query = make(labels).values({**key, **new})
    connection.execute(query.on_conflict_do_update(index_elements=list(labels.primary_key), set_=new))
    model = connection.execute(select(responses.c.model).where(responses.c.id == record)).scalar_one()
    shown = {"probe": label.probe, "choice": label.choice, "value": label.value, "source": label.source, "time": now}
    return StoredLabel(shown, model, flagged)


def labels_of(connection: Connection, records: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """The labels of these records, the oldest first."""
    query = select(labels).where(labels.c.record.in_(records)).order_by(labels.c.time, labels.c.source)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.record].append(
            {"probe": row.probe, "choice": row.choice, "value": row.value, "source": row.source, "time": row.time}
        )
    return found


def _flagged(connection: Connection, record: int, label: Label) -> bool:
    """Whether the choice was flagged; BadRequest if there is none to be labelled."""
    of_record = select(scores.c.choice, scores.c.probe, scores.c.flagged).where(scores.c.record == record)
    of_choice = [row for row in connection.execute(of_record) if row.choice == label.choice]
    if not of_choice:
        raise BadRequest(f"no probe scored choice {label.choice} of this record", param="choice")
    found = [bool(row.flagged) for row in of_choice if row.probe == storable(label.probe)]
    if len(found) != 1:
        what = "probes that nobody configured take no labels" if found else "the record does not have this probe"
        raise BadRequest(what, param="probe")
    return found[0]
