"""What responses list of every token by every probe: objects for who looks at them, JSON for who sends them on.

A sequence of 256 tokens under 64 probes has 16,384 entries. As objects they take 10 ms to make and to write, and keep
the garbage collector busy; their JSON is put together from pieces that probes have in common. It is ASCII whatever the
words are: a text of which every character is a byte is copied, never read, on its way out.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import msgspec
import numpy as np

from pilothouse.core.sites import Float32

Entry = dict[str, Any]
Why = Callable[[int], str | None]
"""Why a token has no logit, by its place; None where that goes without saying."""

_ascii = json.JSONEncoder().encode
_encode = msgspec.json.Encoder().encode

_MARK = msgspec.Raw(b"\0")
"""Stands for a listing: JSON has no such character, which it escapes in strings."""

_LOGIT, _SCORE, _PIECES = 1, 3, 4
"""Where a token's numbers stand among the pieces of its text, and how many these are."""


class TokenTable:
    """The tokens of a sequence under P probes. words, ids: of its n tokens; logits, scores: [P, n], NaN where there is
    none; texts: `number_texts` of the first tokens, as far as they have been made already; the others' are added to
    them."""

    def __init__(
        self,
        words: Sequence[str],
        ids: Sequence[int],
        logits: Float32,
        scores: Float32,
        why: Why,
        texts: list[str] | None = None,
    ) -> None:
        self._words = words
        self._ids = ids
        self._logits = logits
        self._scores = scores
        self._why = why
        if texts:
            # Here, since later several threads may look at the table.
            done = len(texts) // (2 * len(logits))
            texts += number_texts(logits[:, done:].T, scores[:, done:].T)
        self._made = texts
        self._frames: dict[bool, list[str]] = {}

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
        for j, reason in self._reasons.get(probe, ()):
            found[j]["reason"] = reason
        return found

    def text(self, probe: int, words: bool = True) -> str:
        """The JSON of `entries`, in ASCII."""
        if not len(self):
            return "[]"
        n_probes = len(self._logits)
        pieces = self._frame(words).copy()
        pieces[_LOGIT::_PIECES] = self._texts[probe :: 2 * n_probes]
        pieces[_SCORE::_PIECES] = self._texts[n_probes + probe :: 2 * n_probes]
        for j, reason in self._reasons.get(probe, ()):
            pieces[_PIECES * j + _SCORE] += f',"reason":{_ascii(reason)}'
        return "".join(pieces)

    @cached_property
    def _reasons(self) -> dict[int, list[tuple[int, str]]]:
        """By probe, its tokens without a logit that have a reason for it."""
        missing = np.isnan(self._logits)
        found: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for j in np.flatnonzero(missing.any(axis=0)).tolist():
            if (reason := self._why(j)) is not None:
                for probe in np.flatnonzero(missing[:, j]).tolist():
                    found[probe].append((j, reason))
        return found

    def _frame(self, words: bool) -> list[str]:
        """The pieces of a probe's text, with room for the numbers."""
        if words not in self._frames:
            tokens = [""] * len(self)
            if words:
                named = zip(self._words, self._ids, strict=True)
                tokens = [f'"token":{_ascii(word)},"token_id":{token},' for word, token in named]
            self._frames[words] = _framed(tokens)
        return self._frames[words]

    @cached_property
    def _texts(self) -> list[str]:
        """As `number_texts`, of all tokens."""
        return self._made or number_texts(self._logits.T, self._scores.T)


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
    def text(self) -> str:
        """The JSON, in ASCII."""
        return self._table.text(self._probe, self._words)

    def without_words(self) -> "Listing":
        """The same, but for what the tokens are."""
        return Listing(self._table, self._probe, words=False)


def json_pieces(value: Any) -> list[str]:
    """What, joined, is the JSON of what may have listings in it: their texts are pieces of their own, not copied. What
    is not a finite number is null. UnicodeEncodeError for half a surrogate pair, which UTF-8 does not know."""
    listed: list[str] = []

    def mark(found: Any) -> Any:
        if not isinstance(found, Listing):
            raise TypeError(f"{type(found).__name__} is no JSON")
        listed.append(found.text)
        return _MARK

    between = msgspec.json.Encoder(enc_hook=mark).encode(value).decode().split("\0")
    pieces = between + listed
    pieces[::2], pieces[1::2] = between, listed
    return pieces


def json_of(value: Any) -> str:
    """`json_pieces`, joined."""
    return "".join(json_pieces(value))


def numbers(values: Float32) -> list[float | None]:
    """The entries of [n] as JSON can carry them: None for what is not finite."""
    found: list[float | None] = values.tolist()
    for i in np.flatnonzero(~np.isfinite(values)).tolist():
        found[i] = None
    return found


def number_texts(logits: Float32, scores: Float32) -> list[str]:
    """The JSON of each number of [n, P]: token by token, first its P logits, then its P scores; null is what is not
    finite."""
    if not logits.size:
        return []
    # All in one go, and mostly they are those of one token.
    if len(logits) == 1:
        return _encode(logits[0].tolist() + scores[0].tolist()).decode()[1:-1].split(",")
    rows = _encode(np.concatenate((logits, scores), axis=1).tolist()).decode()
    return rows[2:-2].replace("],[", ",").split(",")


def _framed(tokens: Sequence[str]) -> list[str]:
    """The pieces of a list of such tokens; the last one closes it."""
    pieces: list[str] = []
    for number, token in enumerate(tokens):
        pieces += [f'{"},{" if number else "[{"}{token}"logit":', "", ',"score":', ""]
    return [*pieces, "}]"]
