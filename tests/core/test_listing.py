"""What is listed of tokens: its JSON is that of its objects, whatever the words and the numbers."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from api_support.client import strict_json
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pilothouse.core.listing import (
    Begun,
    Listing,
    TokenTable,
    json_of,
    json_pieces,
    named,
    number_texts,
    numbers,
    slim,
    texts_of,
)
from pilothouse.core.sites import Float32

floats = st.floats(width=32) | st.just(float("nan"))
words = st.text(max_size=4) | st.sampled_from(['"', "\\", "],[", ",", "\ud800", "\x00", "é", "🙂"])


@st.composite
def tables(draw: st.DrawFn) -> TokenTable:
    tokens = draw(st.lists(st.tuples(words, st.integers(0, 200_000)), max_size=6))
    shape = (draw(st.integers(1, 3)), len(tokens))
    logits, scores = (draw(arrays(np.float32, shape, elements=floats)) for _ in range(2))
    reasons = draw(st.lists(st.none() | st.text(max_size=4), min_size=len(tokens), max_size=len(tokens)))
    called, ids = [word for word, _ in tokens], [token for _, token in tokens]
    missing = np.flatnonzero(np.isnan(logits).any(axis=0))
    done = draw(st.integers(0, int(missing[0]) if len(missing) else len(tokens)))
    return TokenTable(called, ids, logits, scores, reasons.__getitem__, begun(called, ids, logits, scores, done))


def begun(called: list[str], ids: list[int], logits: Float32, scores: Float32, done: int) -> Begun:
    """The first `done` tokens, taken in one by one."""
    found = Begun(len(logits))
    for j in range(done):
        texts = number_texts(logits[:, j : j + 1].T, scores[:, j : j + 1].T)
        found.add(texts, lambda start, stop: named(called[start:stop], ids[start:stop]))
        assert len(found) == j + 1
    return found


@given(tables())
def test_the_text_is_that_of_the_objects(table: TokenTable) -> None:
    for probe, listing in enumerate(table.listings()):
        expected = json.dumps(table.entries(probe), allow_nan=False)
        assert json_of(listing).isascii()
        assert strict_json(json_of(listing)) == json.loads(expected)
        assert [list(entry) for entry in json.loads(json_of(listing))] == [list(entry) for entry in listing]
        bare = listing.without_words()
        assert strict_json(json_of(bare)) == list(bare) == [_wordless(entry) for entry in listing]
        assert strict_json(json_of({"a": [listing, 1], "b": bare})) == {"a": [json.loads(expected), 1], "b": list(bare)}


@given(tables())
def test_what_is_kept_of_a_text_says_the_same(table: TokenTable) -> None:
    value = {"a": table.listings(), "b": [listing.without_words() for listing in table.listings()]}
    kept, size = slim(json_pieces(value))
    assert "".join(texts_of(kept)) == json_of(value)
    texts = [piece for piece in kept if isinstance(piece, str)]
    assert size >= sum(len(text.encode()) for text in texts)
    # Once for all of its listings.
    assert size == slim(texts)[1] + (table.size if table.listings() else 0)


def test_what_is_kept_of_a_text_is_a_fraction_of_it() -> None:
    n, n_probes = 256, 64
    logits, scores = np.random.default_rng(6).standard_normal((2, n_probes, n)).astype(np.float32)
    called, ids = [f"word {j}" for j in range(n)], list(range(n))
    table = TokenTable(called, ids, logits, scores, lambda j: None, begun(called, ids, logits, scores, n))
    value = table.listings()
    pieces, size = slim(json_pieces(value))
    assert size < len(json_of(value)) / 5
    (kept,) = {id(piece.table): piece.table for piece in pieces if isinstance(piece, Listing)}.values()
    before = len(pickle.dumps(kept))
    assert "".join(texts_of(pieces)) == json_of(value)
    assert before < size
    assert len(pickle.dumps(kept)) < before + 100, "what was read is not kept"


def test_a_listing_is_a_list_of_what_each_token_is_and_scores() -> None:
    logits, scores = np.array([[1.5, np.nan, -np.inf]], np.float32), np.array([[0.75, np.nan, 0.0]], np.float32)
    (listing,) = TokenTable(["a", "b", "c"], [7, 8, 9], logits, scores, {1: "engine_gap"}.get).listings()
    entries: list[dict[str, Any]] = [
        {"token": "a", "token_id": 7, "logit": 1.5, "score": 0.75},
        {"token": "b", "token_id": 8, "logit": None, "score": None, "reason": "engine_gap"},
        {"token": "c", "token_id": 9, "logit": None, "score": 0.0},
    ]
    assert isinstance(listing, Listing)
    assert (len(listing), list(listing), listing[1:], listing[-1]) == (3, entries, entries[1:], entries[2])


@pytest.mark.parametrize("done", [0, 31, 32, 33, 63, 64, 70])
def test_what_was_made_while_tokens_came_is_what_would_be_made_at_the_end(done: int) -> None:
    n, rng = 70, np.random.default_rng(5)
    logits, scores = rng.standard_normal((2, 3, n)).astype(np.float32)
    logits[1, -1] = math.nan
    called, ids = [f"word {j}" for j in range(n)], list(range(100, 100 + n))
    tables = [
        TokenTable(called, ids, logits, scores, lambda j: f"because of {j}", made)
        for made in (None, begun(called, ids, logits, scores, min(done, n - 1)))
    ]
    for listing, expected in zip(tables[1].listings(), tables[0].listings(), strict=True):
        assert json_of(listing) == json_of(expected)
        assert json_of(listing.without_words()) == json_of(expected.without_words())
        assert json.loads(json_of(listing)) == list(expected)


@given(st.lists(st.floats(width=32), max_size=9))
def test_numbers_are_the_shortest_that_are_these_float32(given: list[float]) -> None:
    values = np.array(given, dtype=np.float32)
    for value, found in zip(values, numbers(values), strict=True):
        if np.isfinite(value):
            assert found == float(str(value))
            assert np.float32(found) == value
        else:
            assert found is None
    texts = number_texts(values[:, None], values[:, None])
    assert texts[::2] == texts[1::2]
    assert list(map(json.loads, texts[::2])) == numbers(values)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="object is no JSON"):
        json_of({"a": object()})


def _wordless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.startswith("token")}
