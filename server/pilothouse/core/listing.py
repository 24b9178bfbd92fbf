"""What responses list of every token by every probe: objects for who looks at them, JSON for who sends them on.

A sequence of 256 tokens under 64 probes has 16,384 entries. As objects they take 10 ms to make and to write, and keep
the garbage collector busy; their JSON is put together from pieces that probes have in common. It is ASCII whatever the
words are: a text of which every character is a byte is copied, never read, on its way out.

Numbers are the shortest decimals that are these float32 and no others, which takes half the characters: read as float64
they may differ by one part in ten million.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import msgspec
import numpy as np
import orjson

from pilothouse.core.sites import Float32

Entry = dict[str, Any]
Why = Callable[[int], str | None]
"""Why a token has no logit, by its place; None where that goes without saying."""

_ascii = json.JSONEncoder().encode

_MARK = msgspec.Raw(b"\0")
"""Stands for a listing: JSON has no such character, which it escapes in strings."""

_LOGIT, _SCORE, _PIECES = 1, 3, 4
"""Where a token's numbers stand among the pieces of its text, and how many these are."""
_OF_WORD, _OF_WHY = 120, 100
"""Bytes of a word with its number, characters apart, and of why a token has no logit."""
_PART = 32
"""Tokens whose entries are joined at once while they come."""


class Begun:
    """The JSON of the first tokens of a sequence under P probes, made while they come: at the end of it, when many
    sequences may wait, little is left to do. No logit of these tokens is missing."""

    def __init__(self, n_probes: int) -> None:
        self._n_probes = n_probes
        self.texts: list[str] = []
        """`number_texts` of the last tokens."""
        self.parts: list[list[str]] = []
        """Of each probe the entries of all tokens before these, a part after the other."""

    def __len__(self) -> int:
        return self.n_joined + len(self.texts) // (2 * self._n_probes)

    @property
    def n_joined(self) -> int:
        """Tokens in `parts`."""
        return _PART * len(self.parts)

    def add(self, texts: Sequence[str], naming: Callable[[int, int], Sequence[str]]) -> None:
        """Take in `number_texts` of further tokens. naming: the `named` of tokens [start, stop)."""
        self.texts += texts
        size = _PART * 2 * self._n_probes
        while len(self.texts) >= size:
            tokens = naming(self.n_joined, self.n_joined + _PART)
            self.parts.append(_entry_texts(tokens, self.texts[:size], self._n_probes, {}))
            del self.texts[:size]


class TokenTable:
    """The tokens of a sequence under P probes. words, ids: of its n tokens; logits, scores: [P, n], NaN where there is
    none; begun: what has been made of the first of them already."""

    def __init__(
        self,
        words: Sequence[str],
        ids: Sequence[int],
        logits: Float32,
        scores: Float32,
        why: Why,
        begun: Begun | None = None,
    ) -> None:
        self._words = words
        self._ids = ids
        self._logits = logits
        self._scores = scores
        self._why = why
        self._begun = Begun(len(logits)) if begun is None else begun

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

    def texts(self, words: bool = True) -> Callable[[int], str]:
        """What gives the JSON of `entries` by any probe, in ASCII. What the probes have in common is made at once, and
        gone with it."""
        if not len(self):
            return lambda probe: "[]"
        parts = self._begun.parts + self._last() if words else [self._wordless()]
        return lambda probe: f"[{','.join([part[probe] for part in parts])}]"

    def slim(self) -> "TokenTable":
        """The same to be kept: the numbers alone, of which its JSON, eight times as large, is made again."""
        return TokenTable(self._words, self._ids, self._logits, self._scores, self._whys.get)

    @property
    def size(self) -> int:
        """The bytes that it takes, once it is slim, at most."""
        words = sum(_OF_WORD + 4 * len(word) for word in self._words)
        return self._logits.nbytes + self._scores.nbytes + words + _OF_WHY * len(self._whys)

    @cached_property
    def _whys(self) -> dict[int, str | None]:
        """Why tokens have no logit by some probe, by their places."""
        return {j: self._why(j) for j in np.flatnonzero(np.isnan(self._logits).any(axis=0)).tolist()}

    @cached_property
    def _reasons(self) -> dict[int, list[tuple[int, str]]]:
        """By probe, its tokens without a logit that have a reason for it."""
        found: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for j, reason in self._whys.items():
            if reason is not None:
                for probe in np.flatnonzero(np.isnan(self._logits[:, j])).tolist():
                    found[probe].append((j, reason))
        return found

    def _last(self) -> list[list[str]]:
        """Of each probe the entries of the tokens behind those that were joined already, if there are any."""
        begin, made = self._begun.n_joined, len(self._begun)
        if begin == len(self):
            return []
        texts = self._begun.texts + number_texts(self._logits[:, made:].T, self._scores[:, made:].T)
        reasons = {probe: [(j - begin, why) for j, why in told] for probe, told in self._reasons.items()}
        return [_entry_texts(named(self._words[begin:], self._ids[begin:]), texts, len(self._logits), reasons)]

    def _wordless(self) -> list[str]:
        """Of each probe the entries of all tokens, which do not say what these are."""
        texts = number_texts(self._logits.T, self._scores.T)
        return _entry_texts([""] * len(self), texts, len(self._logits), self._reasons)


class Listing(Sequence[Entry]):
    """What is listed by one probe: a list of objects that are made when they are looked at."""

    def __init__(self, table: TokenTable, probe: int, words: bool = True) -> None:
        self.table = table
        self.probe = probe
        self.words = words

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @cached_property
    def entries(self) -> list[Entry]:
        """The objects."""
        return self.table.entries(self.probe, self.words)

    def without_words(self) -> "Listing":
        """The same, but for what the tokens are."""
        return Listing(self.table, self.probe, words=False)


Piece = str | Listing
"""Of a JSON text: as it is, or as a listing whose text it is."""


def json_pieces(value: Any) -> list[Piece]:
    """What, joined by `texts_of`, is the JSON of what may have listings in it. What is not a finite number is null.
    UnicodeEncodeError for half a surrogate pair, which UTF-8 does not know."""
    listed: list[Listing] = []

    def mark(found: Any) -> Any:
        if not isinstance(found, Listing):
            raise TypeError(f"{type(found).__name__} is no JSON")
        listed.append(found)
        return _MARK

    between = msgspec.json.Encoder(enc_hook=mark).encode(value).decode().split("\0")
    pieces: list[Piece] = [*between, *listed]
    pieces[::2], pieces[1::2] = between, listed
    return pieces


def texts_of(pieces: Iterable[Piece]) -> Iterator[str]:
    """The texts of `pieces`, each once it is asked for: together they may be megabytes."""
    made: dict[tuple[int, bool], Callable[[int], str]] = {}
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
            continue
        key = id(piece.table), piece.words
        if key not in made:
            made[key] = piece.table.texts(piece.words)
        yield made[key](piece.probe)


def slim(pieces: Iterable[Piece]) -> tuple[list[Piece], int]:
    """`pieces` to be kept, and how many bytes they take at most."""
    tables: dict[int, TokenTable] = {}
    found: list[Piece] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, str):
            found.append(piece)
            # One character that is not ASCII can make all of them take four bytes.
            size += len(piece) if piece.isascii() else 4 * len(piece)
            continue
        table = tables.get(id(piece.table))
        if table is None:
            table = tables[id(piece.table)] = piece.table.slim()
            size += table.size
        found.append(Listing(table, piece.probe, piece.words))
    return found, size


def json_of(value: Any) -> str:
    """The JSON of `value`, as `json_pieces` has it."""
    return "".join(texts_of(json_pieces(value)))


def numbers(values: Float32) -> list[float | None]:
    """The entries of [n] as JSON can carry them: None for what is not finite."""
    found: list[float | None] = orjson.loads(b"[%b]" % _bare(np.ascontiguousarray(values)))
    return found


def number_texts(logits: Float32, scores: Float32) -> list[str]:
    """The JSON of each number of [n, P]: token by token, first its P logits, then its P scores; null is what is not
    finite."""
    if not logits.size:
        return []
    logits, scores = np.ascontiguousarray(logits), np.ascontiguousarray(scores)
    # Mostly they are those of one token; to make one array of two takes longer than to write them.
    rows = [_bare(row) for of_token in zip(logits, scores, strict=True) for row in of_token]
    return b",".join(rows).decode().split(",")


def named(words: Iterable[str], ids: Iterable[int]) -> list[str]:
    """The JSON that says what each token is, as far as its numbers."""
    return [f'"token":{_ascii(word)},"token_id":{token},' for word, token in zip(words, ids, strict=True)]


def _bare(values: Float32) -> bytes:
    """The JSON of [n], all of it in one piece, without the brackets."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _entry_texts(
    tokens: Sequence[str], texts: Sequence[str], n_probes: int, reasons: Mapping[int, Sequence[tuple[int, str]]]
) -> list[str]:
    """Of each probe the JSON of its entries, with commas between. tokens: `named`, or nothing; texts: their
    `number_texts`; reasons: by probe, why there is no logit of a token of that number."""
    pieces: list[str] = []
    for number, token in enumerate(tokens):
        pieces += [f'{"},{" if number else "{"}{token}"logit":', "", ',"score":', ""]
    pieces.append("}")
    found = []
    for probe in range(n_probes):
        pieces[_LOGIT::_PIECES] = texts[probe :: 2 * n_probes]
        pieces[_SCORE::_PIECES] = texts[n_probes + probe :: 2 * n_probes]
        for j, reason in reasons.get(probe, ()):
            pieces[_PIECES * j + _SCORE] += f',"reason":{_ascii(reason)}'
        found.append("".join(pieces))
    return found
