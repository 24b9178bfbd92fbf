"""Which records are asked for, and in which order they are listed."""

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, true, tuple_

from pilothouse.core.errors import BadRequest
from pilothouse.records.rows import storable
from pilothouse.records.schema import IS_FLAGGED, labels, responses, scores

Order = Literal["time", "score", "score_asc"]
Label = Literal["true", "false", "any", "none"]

_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Filters:
    """What a record must be like. What is said of probes, scores and flags is met by one and the same choice.

    flagged: without `probe`, of the record as a whole; since, until: seconds since 1970, the first inclusive; label:
    what any source said of the record, or of `probe` where it is given.
    """

    flagged: bool | None = None
    probe: str | None = None
    model: str | None = None
    steering: str | None = None
    route: str | None = None
    since: float | None = None
    until: float | None = None
    label: Label | None = None
    min_score: float | None = None
    max_score: float | None = None

    def condition(self) -> ColumnElement[bool]:
        """Of the table of responses."""
        found: list[ColumnElement[bool]] = [
            column == storable(wanted)
            for column, wanted in (
                (responses.c.model, self.model),
                (responses.c.steering, self.steering),
                (responses.c.route, self.route),
            )
            if wanted is not None
        ]
        if self.since is not None:
            found.append(responses.c.time >= self.since)
        if self.until is not None:
            found.append(responses.c.time < self.until)
        if self.flagged is not None and self.probe is None:
            found.append(IS_FLAGGED if self.flagged else responses.c.flagged.is_(False))
        if self._asks_scores:
            found.append(exists().where(scores.c.record == responses.c.id, self.score_condition()))
        if self.label is not None:
            found.append(self._label_condition(self.label))
        return and_(true(), *found)

    @property
    def _asks_scores(self) -> bool:
        return self.probe is not None or self.min_score is not None or self.max_score is not None

    def score_condition(self) -> ColumnElement[bool]:
        """Of the table of scores."""
        found: list[ColumnElement[bool]] = []
        if self.probe is not None:
            found.append(scores.c.probe == storable(self.probe))
            if self.flagged is not None:
                found.append(scores.c.flagged.is_(self.flagged))
        if self.min_score is not None:
            found.append(scores.c.score >= self.min_score)
        if self.max_score is not None:
            found.append(scores.c.score <= self.max_score)
        return and_(true(), *found)

    def _label_condition(self, label: Label) -> ColumnElement[bool]:
        of_record = [labels.c.record == responses.c.id]
        if self.probe is not None:
            of_record.append(labels.c.probe == storable(self.probe))
        if label in ("true", "false"):
            of_record.append(labels.c.value.is_(label == "true"))
        there = exists().where(*of_record)
        return ~there if label == "none" else there


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: the last record's key in this order, and its id."""

    order: Order
    key: float
    id: int

    def __str__(self) -> str:
        text = json.dumps([self.order, self.key, self.id])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, order: Order) -> Self:
        """The cursor that an earlier page gave; BadRequest if it is none, or that of another order."""
        try:
            raw = text.encode("ascii") + b"=" * (-len(text) % 4)
            read: Any = json.loads(base64.b64decode(raw, altchars=b"-_", validate=True))
            of_order, key, number = read
            known = of_order in get_args(Order) and type(key) in (int, float) and type(number) is int
            found = cls(of_order, float(key), number) if known else None
        except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
            found = None
        if found is None or not math.isfinite(found.key) or not 0 <= found.id <= _LARGEST_ID:
            raise BadRequest("this is not the `next` of an earlier page", param="after")
        if found.order != order:
            raise BadRequest(f"this is the `next` of a page in the order {found.order!r}, not {order!r}", param="after")
        return found


def page_of_ids(filters: Filters, order: Order, after: Cursor | None, limit: int) -> Select[Any]:
    """id, size and key of the first `limit` records behind `after`: newest first, or by the largest (`score`) or
    smallest (`score_asc`) of the scores that meet the filters."""
    if order == "time":
        key: ColumnElement[Any] = responses.c.time
        query = select(responses.c.id, responses.c.size, key.label("key")).where(filters.condition())
    else:
        extreme = func.max if order == "score" else func.min
        best = (
            select(scores.c.record, extreme(scores.c.score).label("key"))
            .where(filters.score_condition(), scores.c.score.is_not(None))
            .group_by(scores.c.record)
            .subquery()
        )
        key = best.c.key
        query = select(responses.c.id, responses.c.size, key.label("key")).join(best, best.c.record == responses.c.id)
        query = query.where(filters.condition())
    if order == "score_asc":
        query = query.order_by(key, responses.c.id)
        behind = None if after is None else tuple_(key, responses.c.id) > tuple_(after.key, after.id)
    else:
        query = query.order_by(key.desc(), responses.c.id.desc())
        behind = None if after is None else tuple_(key, responses.c.id) < tuple_(after.key, after.id)
    if behind is not None:
        query = query.where(behind)
    return query.limit(limit)
