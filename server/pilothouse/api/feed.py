"""The scores of one sequence while it is streamed: each is given once, behind its token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from pilothouse.api.scoring import ChoiceScores
from pilothouse.core.sites import Float32

_encode = msgspec.json.Encoder().encode

_START, _LOGITS, _SCORES, _PIECES = 1, 3, 5, 6
"""Where a probe's numbers stand among the pieces of its text, and how many these are."""


@dataclass(frozen=True, eq=False)
class Block:
    """Logits and scores [n, P] of generated tokens from number `start` on; NaN where there is none."""

    start: int
    logits: Float32
    scores: Float32


class ScoreFeed:
    """How far the scores of a sequence have been streamed."""

    def __init__(self, scores: ChoiceScores) -> None:
        self._scores = scores
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
        n_probes = len(self._scores.names)
        # All the numbers in one go, which makes null of what is not finite; mostly they are those of one token.
        rows = np.concatenate((block.logits, block.scores), axis=1)
        if len(rows) == 1:
            numbers = _encode(rows[0].tolist())[1:-1].decode().split(",")
        else:
            numbers = _encode(rows.T.tolist())[2:-2].decode().split("],[")
        pieces = self._frame.copy()
        pieces[_START::_PIECES] = [str(block.start)] * n_probes
        pieces[_LOGITS::_PIECES] = numbers[:n_probes]
        pieces[_SCORES::_PIECES] = numbers[n_probes:]
        return "".join(pieces)

    @cached_property
    def _frame(self) -> list[str]:
        """The pieces of the text, with room for the numbers; the last one closes it."""
        return _frame_of(self._scores.names)


def _frame_of(names: Sequence[str]) -> list[str]:
    pieces: list[str] = []
    for number, name in enumerate(names):
        before = "]}," if number else "{"
        pieces += [f'{before}{_encode(name).decode()}:{{"start":', "", ',"logits":[', "", '],"scores":[', ""]
    return [*pieces, "]}}"]


def _whole_rows(logits: Float32) -> int:
    """How many rows of [n, P] there are before the first in which something is missing."""
    missing = np.isnan(logits)
    return int(missing.any(axis=1).argmax()) if missing.any() else len(logits)


def _columns(values: Float32) -> list[list[float | None]]:
    """The columns of [n, P]; None for what is not finite."""
    columns: list[list[float | None]] = values.T.tolist()
    for row, column in np.argwhere(~np.isfinite(values)).tolist():
        columns[column][row] = None
    return columns
