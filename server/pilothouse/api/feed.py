"""The scores of one sequence while it is streamed: each is given once, behind its token."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pilothouse.api.scoring import ChoiceScores
from pilothouse.core.listing import number_texts
from pilothouse.core.sites import Float32
from pilothouse.probing.panel import surely_finite

_START, _LOGIT, _SCORE, _PIECES = 1, 2, 4, 5
"""Where a probe's numbers stand among the pieces of its text, and how many these are."""


class Allowance:
    """What feeds may keep until their sequences have ended, all of them together. left: texts of a number, each of
    which takes 80 bytes."""

    def __init__(self, left: int = 2**21) -> None:
        self.left = left


@dataclass(frozen=True, eq=False)
class Block:
    """Logits and scores [n, P] of generated tokens from number `start` on; NaN where there is none."""

    start: int
    logits: Float32
    scores: Float32


class ScoreFeed:
    """How far the scores of a sequence have been streamed."""

    def __init__(self, scores: ChoiceScores, allowance: Allowance | None = None) -> None:
        self._scores = scores
        self._allowance = allowance or Allowance()
        self._kept: list[Float32] = []
        """The logits of the first tokens whose numbers' texts are kept."""
        self._texts: list[str] = []
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
        columns = zip(self._scores.names, _columns(block.logits), _columns(block.scores), strict=True)
        return {name: {"start": block.start, "logits": logits, "scores": scores} for name, logits, scores in columns}

    def text(self, block: Block) -> str:
        """The JSON of `named`, for a fraction of its price."""
        n_probes, n = len(self._scores.names), len(block.logits)
        texts = number_texts(block.logits, block.scores)
        self._keep(block, texts)
        if n > 1:
            texts = [",".join(texts[k :: 2 * n_probes]) for k in range(2 * n_probes)]
        pieces = self._frame.copy()
        pieces[_START::_PIECES] = [f'{block.start},"logits":['] * n_probes
        pieces[_LOGIT::_PIECES] = texts[:n_probes]
        pieces[_SCORE::_PIECES] = texts[n_probes:]
        return "".join(pieces)

    def give_up(self, logits: Float32 | None = None) -> list[str]:
        """The `number_texts` of as many of the first tokens as they were kept of, which are no longer kept; none
        unless their logits are still the first of `logits` [n, P]: what is computed again may come out otherwise."""
        kept, texts, self._kept, self._texts = self._kept, self._texts, [], []
        self._allowance.left += len(texts)
        if not kept or logits is None:
            return []
        rows = np.concatenate(kept)
        return texts if np.array_equal(rows, logits[: len(rows)]) else []

    def _keep(self, block: Block, texts: list[str]) -> None:
        """Of blocks that follow one another from the first token on."""
        follows = 2 * len(self._scores.names) * block.start == len(self._texts)
        if follows and len(texts) <= self._allowance.left:
            self._allowance.left -= len(texts)
            self._kept.append(block.logits)
            self._texts += texts

    @cached_property
    def _frame(self) -> list[str]:
        """The pieces of the text, with room for the numbers; the last one closes it."""
        return _frame_of(self._scores.names)


def _frame_of(names: Sequence[str]) -> list[str]:
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


def _columns(values: Float32) -> list[list[float | None]]:
    """The columns of [n, P]; None for what is not finite."""
    columns: list[list[float | None]] = values.T.tolist()
    for row, column in np.argwhere(~np.isfinite(values)).tolist():
        columns[column][row] = None
    return columns
