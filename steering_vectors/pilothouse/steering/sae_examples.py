"""The tokens at which each feature of an SAE is most active, at most one of each text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.sites import Float32
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_pass import Arrays, encode, run_pass
from pilothouse.steering.sae_store import KeptText, RowStore, row_chunks

ROWS_AT_ONCE = 4096
BEFORE, AFTER = 16, 8
"""Tokens of context that an example shows."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class TopRows:
    """acts, rows [d_sae, top]: the largest activations of each feature in descending order and where they are, 0 and -1
    where it fires in fewer texts; fired [d_sae]: at how many tokens it fires at all."""

    acts: Float32
    rows: npt.NDArray[np.int64]
    fired: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One token at which a feature is active, with the text around it; position counts the text's tokens from 0."""

    activation: float
    text: int
    position: int
    token: str
    before: str
    after: str

    @property
    def previous_word(self) -> str:
        """The word before the one that the token is in or begins."""
        joined = bool(self.before) and not self.before[-1].isspace() and not self.token[:1].isspace()
        words = self.before.split()
        if joined:
            words = words[:-1]
        return words[-1] if words else ""


def top_rows(
    sae: Any, store: RowStore, top: int, kept: Path | None = None, progress: Progress | None = None
) -> TopRows:
    """Run an SAE (see `load_encoder`) over a store; equal activations are in the order of rows. `kept`: `run_pass`."""
    d_sae = sae.cfg.d_sae
    state: Arrays = {
        "acts": np.zeros((d_sae, top), dtype=np.float32),
        "rows": np.full((d_sae, top), -1, dtype=np.int64),
        "fired": np.zeros(d_sae, dtype=np.int64),
    }
    rows = store.rows

    def update(state: Arrays, texts: list[KeptText]) -> None:
        first, stop = texts[0].start, texts[-1].stop
        acts, _ = encode(sae, rows[first:stop])
        owners = np.repeat(np.arange(len(texts)), [text.stop - text.start for text in texts])
        state["fired"] += (acts > 0).sum(axis=0)
        _merge(state, *_best_of_texts(acts, owners, first))

    end = run_pass(state, [texts for _, texts in row_chunks(store, ROWS_AT_ONCE)], update, kept, progress)
    return TopRows(end["acts"], end["rows"], end["fired"])


class ExampleReader:
    """Turns rows of a store back into text."""

    def __init__(self, store: RowStore, decode: Decode) -> None:
        self._texts = store.texts
        self._starts = np.array([text.start for text in store.texts])
        self._tokens = store.tokens
        self._decode = decode

    def examples(self, found: TopRows, feature: int) -> list[Example]:
        """The examples of one feature, strongest first."""
        rows = found.rows[feature]
        pairs = zip(rows[rows >= 0], found.acts[feature], strict=False)
        return [self._example(int(row), float(activation)) for row, activation in pairs]

    def _example(self, row: int, activation: float) -> Example:
        text = self._texts[int(np.searchsorted(self._starts, row, side="right")) - 1]
        first, stop = max(text.start, row - BEFORE), min(text.stop, row + 1 + AFTER)
        ids = self._tokens[first:stop].tolist()
        at = row - first
        return Example(
            activation=activation,
            text=text.number,
            position=row - text.start + 1,
            token=self._decode(ids[at : at + 1]),
            before=self._decode(ids[:at]),
            after=self._decode(ids[at + 1 :]),
        )


def _best_of_texts(
    acts: Float32, owners: npt.NDArray[np.int64], first: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float32]:
    """Of each feature and text the largest activation: features, rows of the store and activations, by feature and then
    from the largest down."""
    at, features = np.nonzero(acts > 0)
    values = acts[at, features]
    order = np.lexsort((at, -values, owners[at], features))
    at, features, values = at[order], features[order], values[order]
    leads = np.ones(len(at), dtype=bool)
    leads[1:] = (features[1:] != features[:-1]) | (owners[at[1:]] != owners[at[:-1]])
    at, features, values = at[leads], features[leads], values[leads]
    order = np.lexsort((at, -values, features))
    return features[order], at[order] + first, values[order]


def _merge(state: Arrays, features: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], values: Float32) -> None:
    """Put sorted candidates of later rows into the running lists of each feature."""
    d_sae, top = state["acts"].shape
    ranks = np.arange(len(features)) - np.searchsorted(features, features, side="left")
    short = ranks < top
    acts, places = np.zeros((d_sae, top), dtype=np.float32), np.full((d_sae, top), -1, dtype=np.int64)
    acts[features[short], ranks[short]] = values[short]
    places[features[short], ranks[short]] = rows[short]
    both_acts, both_rows = np.hstack((state["acts"], acts)), np.hstack((state["rows"], places))
    # Stable, so that of equal ones the earlier row stays before the later.
    order = np.argsort(-both_acts, axis=1, kind="stable")[:, :top]
    state["acts"][:] = np.take_along_axis(both_acts, order, axis=1)
    state["rows"][:] = np.take_along_axis(both_rows, order, axis=1)
