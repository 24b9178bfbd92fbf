"""The query of a list of records: every parameter known, every value possible, or a 400 that names it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

from starlette.datastructures import QueryParams

from pilothouse.api.names import quote
from pilothouse.core.errors import BadRequest
from pilothouse.records.filters import Cursor, Filters, Label, Order

MAX_LIMIT = 1000
_LIMIT = 100


@dataclass(frozen=True)
class ListQuery:
    """What a list was asked for."""

    filters: Filters
    order: Order
    after: Cursor | None
    limit: int


def parse_list(params: QueryParams) -> ListQuery:
    """The query of a page; BadRequest."""
    given = _single(params, {*_FILTERS, "order", "after", "limit"})
    order: Order = _one_of("order", given.get("order", "time"), get_args(Order))
    if order != "time" and "probe" not in given:
        raise BadRequest("an order by score needs the probe whose score it is", param="probe")
    after = Cursor.parse(given["after"], order) if "after" in given else None
    return ListQuery(parse_filters(given), order, after, _limit(given.get("limit", str(_LIMIT))))


def parse_export(params: QueryParams) -> Filters:
    """The query of an export, which says its format; BadRequest."""
    given = _single(params, {*_FILTERS, "format"})
    _one_of("format", given["format"], ("parquet",))
    return parse_filters(given)


def parse_filters(given: Mapping[str, str]) -> Filters:
    """Filters by their names, as text; BadRequest for a value that cannot be."""
    return Filters(**{name: read(name, given[name]) for name, read in _FILTERS.items() if name in given})


def _single(params: QueryParams, known: set[str]) -> dict[str, str]:
    for name, count in Counter(name for name, _ in params.multi_items()).items():
        if name not in known:
            raise BadRequest(f"unknown parameter {quote(name)}; known: {', '.join(sorted(known))}", param=name)
        if count > 1:
            raise BadRequest(f"{name} is given {count} times", param=name)
    return dict(params)


def _limit(text: str) -> int:
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise BadRequest(f"limit must be a whole number from 1 to {MAX_LIMIT}, not {quote(text)}", param="limit")
    return limit


def _text(name: str, text: str) -> str:
    return text


def _flag(name: str, text: str) -> bool:
    found: str = _one_of(name, text, ("true", "false"))
    return found == "true"


def _label(name: str, text: str) -> Label:
    found: Label = _one_of(name, text, get_args(Label))
    return found


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRequest(f"{name} must be a number, not {quote(text)}", param=name)
    return number


def _time(name: str, text: str) -> float:
    try:
        return _number(name, text)
    except BadRequest:
        pass
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        what = "seconds since 1970, or a time as 2026-01-31T12:00:00Z"
        raise BadRequest(f"{name} must be {what}, not {quote(text)}", param=name) from None


def _one_of(name: str, text: str, known: tuple[str, ...]) -> Any:
    if text not in known:
        raise BadRequest(f"{name} must be one of {', '.join(known)}, not {quote(text)}", param=name)
    return text


_FILTERS: dict[str, Callable[[str, str], Any]] = {
    "flagged": _flag,
    "probe": _text,
    "model": _text,
    "steering": _text,
    "route": _text,
    "since": _time,
    "until": _time,
    "label": _label,
    "min_score": _number,
    "max_score": _number,
}
