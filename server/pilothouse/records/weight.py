"""How large a record will be, told in microseconds, before it is one."""

from typing import Any

from pilothouse.core.listing import Listing
from pilothouse.core.records import RequestOutcome

_RECORD = 600
_OTHER = 12
_ENTRY = 90
_KEY = 10
_LOOKED_AT = 2
"""Entries of a list that are weighed; the rest is taken to be like them, as tokens are."""


def weight(outcome: RequestOutcome) -> int:
    """About how many bytes the JSON of the record has; text counts a byte a character."""
    return _RECORD + sum(map(_sampled, outcome.body)) + _whole(outcome.text)


# By the type itself: this runs for every request on the event loop, and what is compared here comes from our own hands.
def _sampled(value: Any) -> int:
    kind = type(value)
    if kind is str:
        return len(value)
    if kind is dict:
        return _KEY * len(value) + sum(map(_sampled, value.values()))
    if kind is list:
        n = len(value)
        return sum(map(_sampled, value[:_LOOKED_AT])) * n // min(n, _LOOKED_AT) if n else 0
    if kind is Listing:
        return _ENTRY * len(value)
    return _OTHER


def _whole(value: Any) -> int:
    """Messages may differ in length by any factor, but they are few."""
    match value:
        case str():
            return len(value)
        case dict():
            return sum(len(key) + _whole(entry) for key, entry in value.items())
        case list() | tuple():
            return sum(map(_whole, value))
    return _OTHER
