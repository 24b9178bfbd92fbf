"""The names of our two top-level request fields, and how a slip of the pen is told from somebody else's field."""

from collections.abc import Iterable, Mapping
from typing import Any

from pilothouse.core.errors import BadRequest

STEERING = "steering"
PROBES = "probes"
FIELDS = (STEERING, PROBES)

_ALIASES = {"vector": STEERING, "vectors": STEERING, "prob": PROBES, "probs": PROBES}
_STEMS = {"steer": STEERING, "probe": PROBES, "probing": PROBES}
_LETTERS_PER_SLIP = 4
_QUOTE_LIMIT = 80


def near_miss(key: str) -> str | None:
    """Which of our fields `key` was probably meant to be; None for our own names and for names that are not near.

    Near is: other case or separators, one of our stems in front (``steer_strength``), a few aliases, or at most one
    slip for every four letters of the name. A wider net would catch ordinary words: ``process`` is two slips from
    ``probes``.
    """
    if key in FIELDS:
        return None
    bare = "".join(c for c in key.lower() if c.isalnum())
    if bare in _ALIASES:
        return _ALIASES[bare]
    for stem, field in _STEMS.items():
        if bare.startswith(stem):
            return field
    return next((f for f in FIELDS if _slips(bare, f, limit=len(f) // _LETTERS_PER_SLIP)), None)


def reject_near_misses(keys: Iterable[object]) -> None:
    """BadRequest for the first key that looks like one of our fields without being it."""
    for key in keys:
        if isinstance(key, str) and (field := near_miss(key)):
            raise BadRequest(f"unknown field {quote(key)}: did you mean {field!r}?", param=printable(key))


def used_fields(body: Mapping[Any, Any]) -> list[str]:
    """Which of our fields a request carries, whatever their values."""
    return [field for field in FIELDS if field in body]


def quote(value: object) -> str:
    """`value` for an error message: short, and always encodable."""
    try:
        return printable(repr(value))
    except (ValueError, RecursionError):  # integers beyond Python's digit limit, nesting beyond its stack
        return f"this {type(value).__name__}"


def printable(text: str) -> str:
    """`text` cut to a readable length, and encodable."""
    return encodable(text if len(text) <= _QUOTE_LIMIT else text[:_QUOTE_LIMIT] + "…")


def encodable(text: str) -> str:
    """`text` with its lone surrogates escaped: JSON may bring them, UTF-8 cannot carry them back."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _slips(word: str, target: str, limit: int) -> bool:
    """True when at most `limit` insertions, deletions, substitutions or swaps of neighbours part word from target."""
    if abs(len(word) - len(target)) > limit:
        return False
    before: list[int] = []
    last = list(range(len(target) + 1))
    for i, a in enumerate(word, 1):
        row = [i]
        for j, b in enumerate(target, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == target[j - 2] and word[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1] <= limit
