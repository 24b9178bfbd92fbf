"""What responses list of every token by every probe: objects for who looks at them, JSON for who sends them on.

A sequence of 256 tokens under 64 probes has 16,384 entries. As objects they take 10 ms to make and to write, and keep
the garbage collector busy; their JSON is put together from pieces that probes have in common.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import msgspec
import numpy as np

from pilothouse.core.sites import Float32

Entry = dict[str, Any]
Why = Callable[[int], str | None]
"""Why a token has no logit, by its place; None where that goes without saying."""

_LOGIT, _SCORE, _PIECES = 1, 3, 4
"""Where a token's numbers stand among the pieces of its text, and how many these are."""


class TokenTable:
    """The tokens of a sequence under P probes. words, ids: of its n tokens; logits, scores: [P, n], NaN where there is
    none."""

    def __init__(self, words: Sequence[str], ids: Sequence[int], logits: Float32, scores: Float32, why: Why) -> None:
        self._words = words
        self._ids = ids
        self._logits = logits
        self._scores = scores
        self._why = why

    def __len__(self) -> int:
        return len(self._ids)

    def listings(self) -> list["Listing"]:
        """What is listed by each probe."""
        return [Listing(self, k) for k in range(len(self._logits))]

    def entries(self, probe: int, words: bool = True) -> list[Entry]:
        """An entry for each token, by probe number `probe`; words: it says what the token is."""
        columns = zip(numbers(self._logits[probe]), numbers(self._scores[probe]), strict=True)
        found: list[Entry] = [{"logit": logit, "score": score} for logit, score in columns]
        if words:
            tokens = zip(self._words, self._ids, found, strict=True)
            found = [{"token": word, "token_id": token, **entry} for word, token, entry in tokens]
        for j, reason in self._reasons(probe):
            found[j]["reason"] = reason
        return found

    def text(self, probe: int, words: bool = True) -> bytes:
        """The JSON of `entries`."""
        if not len(self):
            return b"[]"
        pieces = self._frames[words].copy()
        scores = self._texts[1][probe]
        pieces[_LOGIT::_PIECES] = self._texts[0][probe]
        pieces[_SCORE::_PIECES] = scores
        for j, reason in self._reasons(probe):
            pieces[_PIECES * j + _SCORE] = scores[j] + b',"reason":' + msgspec.json.encode(reason)
        return b"".join(pieces)

    def _reasons(self, probe: int) -> Iterator[tuple[int, str]]:
        for j in np.flatnonzero(np.isnan(self._logits[probe])).tolist():
            if (reason := self._why(j)) is not None:
                yield j, reason

    @cached_property
    def _frames(self) -> dict[bool, list[bytes]]:
        """The pieces of the text, with room for the numbers, with words and without."""
        tokens = [
            b'"token":%b,"token_id":%d,' % (_text(word), token)
            for word, token in zip(self._words, self._ids, strict=True)
        ]
        return {True: _framed(tokens), False: _framed([b""] * len(self))}

    @cached_property
    def _texts(self) -> tuple[list[list[bytes]], list[list[bytes]]]:
        """Logits and scores as text, by probe and token; null is what is not finite."""
        return _number_texts(self._logits), _number_texts(self._scores)


class Listing(Sequence[Entry]):
    """What is listed by one probe: a list of objects that are made when they are looked at."""

    def __init__(self, table: TokenTable, probe: int, words: bool = True) -> None:
        self._table = table
        self._probe = probe
        self._words = words

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @cached_property
    def entries(self) -> list[Entry]:
        """The objects."""
        return self._table.entries(self._probe, self._words)

    @cached_property
    def text(self) -> bytes:
        """The JSON."""
        return self._table.text(self._probe, self._words)

    def without_words(self) -> "Listing":
        """The same, but for what the tokens are."""
        return Listing(self._table, self._probe, words=False)


def json_of(value: Any) -> bytes:
    """JSON of what may have listings in it; what is not a finite number is null. UnicodeEncodeError for half a
    surrogate pair, which UTF-8 does not know."""
    return _encode(value)


def numbers(values: Float32) -> list[float | None]:
    """The entries of [n] as JSON can carry them: None for what is not finite."""
    found: list[float | None] = values.tolist()
    for i in np.flatnonzero(~np.isfinite(values)).tolist():
        found[i] = None
    return found


def _framed(tokens: Sequence[bytes]) -> list[bytes]:
    """The pieces of a list of such tokens; the last one closes it."""
    pieces: list[bytes] = []
    for number, token in enumerate(tokens):
        pieces += [b'%b%b"logit":' % (b"},{" if number else b"[{", token), b"", b',"score":', b""]
    return [*pieces, b"}]"]


def _number_texts(values: Float32) -> list[list[bytes]]:
    # All in one go: the writer makes null of what is not finite.
    return [row.split(b",") for row in msgspec.json.encode(values.tolist())[2:-2].split(b"],[")]


def _text(word: str) -> bytes:
    try:
        return msgspec.json.encode(word)
    except UnicodeEncodeError:
        return json.dumps(word).encode()


def _raw(value: Any) -> Any:
    if isinstance(value, Listing):
        return msgspec.Raw(value.text)
    raise TypeError(f"{type(value).__name__} is no JSON")


_encode = msgspec.json.Encoder(enc_hook=_raw).encode
