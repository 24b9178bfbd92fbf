"""The scores of one sequence while it is streamed: each is given once, behind its token."""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pilothouse.api.scoring import ChoiceScores, Decode, Rows
from pilothouse.core.listing import Begun, named, number_texts, numbers
from pilothouse.core.sites import Float32
from pilothouse.probing.panel import surely_finite

_START, _LOGIT, _SCORE, _PIECES = 1, 2, 4, 5
"""Where a probe's numbers stand among the pieces of its text, and how many these are."""

_MOST_RECENT = 32
"""Blocks that may be rows of larger arrays, which they keep in memory."""


class Allowance:
    """What feeds may keep until their sequences have ended, all of them together. left: numbers, each of which takes 30
    to 70 bytes."""

    def __init__(self, left: int = 2**21) -> None:
        self.left = left


@dataclass(frozen=True, eq=False)
class Block:
    """Logits and scores [n, P] of generated tokens from number `start` on; NaN where there is none. among: where they
    are a row of many."""

    start: int
    logits: Float32
    scores: Float32
    among: tuple[Rows, int] | None = None

    def texts(self) -> list[str]:
        """Their `number_texts`."""
        if self.among is None:
            return number_texts(self.logits, self.scores)
        rows, row = self.among
        return rows.texts(row)


class ScoreFeed:
    """How far the scores of a sequence have been streamed."""

    def __init__(self, scores: ChoiceScores, decode: Decode, allowance: Allowance | None = None) -> None:
        self._scores = scores
        self._decode = decode
        self._allowance = allowance or Allowance()
        self._kept: list[Float32] = []
        """The logits of the tokens that `_begun` has, but for the most recent ones."""
        self._recent: list[Float32] = []
        self._begun = Begun(len(scores.names))
        self._seen = 0
        """Tokens that earlier events announced."""
        self._sent = 0
        """Tokens whose scores have been given."""
        self._passed = 0
        """Entries of `logprobs.content` that have passed."""

    def take(self, finished: bool, announces: bool = True) -> Block | None:
        """The scores of tokens that earlier events announced, as far as there is no hole; all of them at the finish.
        announces: the event that they go out with announces all the tokens there are."""
        total = len(self._scores.track.token_ids)
        stop = total if finished else min(self._seen, total - 1)
        if announces:
            self._seen = total
        start = self._sent
        if stop <= start:
            return None
        if not finished and stop == start + 1 and (among := self._scores.latest(start)) is not None:
            self._sent = stop
            rows, row = among
            return Block(start, rows.logits[row : row + 1], rows.scores[row : row + 1], among)
        logits = self._scores.generated(start, stop)
        if not finished:
            logits = logits[: _whole_rows(logits)]
        if not len(logits):
            return None
        self._sent = start + len(logits)
        return Block(start, logits, self._scores.token_scores(logits))

    def pass_on(self, n: int) -> list[dict[str, Any] | None]:
        """What the next `n` entries of `logprobs.content` are to carry."""
        start, self._passed = self._passed, self._passed + n
        return self._scores.entries(start, self._passed)

    def named(self, block: Block | None) -> dict[str, Any]:
        """What clients see of `block`, by probe."""
        if block is None:
            return {}
        columns = zip(self._scores.names, map(numbers, block.logits.T), map(numbers, block.scores.T), strict=True)
        return {name: {"start": block.start, "logits": logits, "scores": scores} for name, logits, scores in columns}

    def text(self, block: Block) -> str:
        """The JSON of `named`, for a fraction of its price; of a block that was taken before the finish."""
        n_probes, n = len(self._scores.names), len(block.logits)
        texts = block.texts()
        self._keep(block, texts)
        if n > 1:
            texts = [",".join(texts[k :: 2 * n_probes]) for k in range(2 * n_probes)]
        pieces = self._frame.copy()
        pieces[_START::_PIECES] = [f'{block.start},"logits":['] * n_probes
        pieces[_LOGIT::_PIECES] = texts[:n_probes]
        pieces[_SCORE::_PIECES] = texts[n_probes:]
        return "".join(pieces)

    def give_up(self, logits: Float32 | None = None) -> Begun | None:
        """The JSON of as many of the first tokens as it was kept of, which is no longer kept; None unless their logits
        are still the first of `logits` [n, P]: what is computed again may come out otherwise."""
        kept, begun = self._kept + self._recent, self._begun
        self._kept, self._recent, self._begun = [], [], Begun(len(self._scores.names))
        if not kept:
            return None
        self._allowance.left += 2 * len(self._scores.names) * len(begun)
        if logits is None:
            return None
        rows = np.concatenate(kept)
        return begun if np.array_equal(rows, logits[: len(rows)]) else None

    def _keep(self, block: Block, texts: list[str]) -> None:
        """Of blocks that follow one another from the first token on."""
        if block.start == len(self._begun) and len(texts) <= self._allowance.left:
            self._allowance.left -= len(texts)
            self._recent.append(block.logits)
            if len(self._recent) == _MOST_RECENT:
                self._kept.append(np.concatenate(self._recent))
                self._recent.clear()
            self._begun.add(texts, self._naming)

    def _naming(self, start: int, stop: int) -> list[str]:
        ids = self._scores.track.token_ids[start:stop]
        return named(map(self._decode, ids), ids)

    @cached_property
    def _frame(self) -> list[str]:
        """The pieces of the text, with room for the numbers; the last one closes it."""
        return _frame_of(tuple(self._scores.names))


# Shared by requests with the same probes: what all of them use stays in the processor's cache.
@lru_cache(maxsize=64)
def _frame_of(names: tuple[str, ...]) -> list[str]:
    pieces: list[str] = []
    for number, name in enumerate(names):
        before = "]}," if number else "{"
        pieces += [f'{before}{json.dumps(name)}:{{"start":', "", "", '],"scores":[', ""]
    return [*pieces, "]}}"]


def _whole_rows(logits: Float32) -> int:
    """How many rows of [n, P] there are before the first in which something is missing."""
    if surely_finite(logits):
        return len(logits)
    missing = np.isnan(logits).any(axis=1)
    return int(missing.argmax()) if missing.any() else len(logits)
