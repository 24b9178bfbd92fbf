"""A model that computes nothing, and what requests to it must give.

A token's "stream" is a checksum of the stream before it and of the token; what an edit adds goes into the checksum that
the next token sees. So a row of another plan, a score at another position or a past that is not the request's own
changes a number that can be told. `Ask.reference` computes it all from the plan alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Positions
from pilothouse.core.plans import Plan, Readout, edit_spans
from pilothouse.core.sites import Float32

LAYERS = (0, 1)
D_MODEL = 2


def enter(before: int, token: int) -> int:
    """The stream of `token` behind the stream `before`."""
    return zlib.crc32(token.to_bytes(4, "little"), before)


def leave(stream: int, change: bytes) -> int:
    """The stream after an edit that adds `change`."""
    return zlib.crc32(change, stream) if any(change) else stream


def read(stream: int, weights: bytes) -> float:
    """A readout: a whole number, exact in float32."""
    return float(1 + zlib.crc32(weights, stream) % 100_000)


def sample(stream: int) -> int:
    return 1 + zlib.crc32(b"next", stream) % 50


@dataclass
class Ask:
    """One request, and what must come of it."""

    request_id: str
    prompt: tuple[int, ...]
    plan: Plan = field(default_factory=Plan)
    max_tokens: int = 4
    stop: int | None = None

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        return edit_spans(self.plan.edits, len(self.prompt))

    @property
    def read_from(self) -> int:
        return 0 if self.plan.prompt_scores else len(self.prompt) - 1

    def change(self, position: int) -> Float32:
        """What the plan adds to the stream at `position`, layer after layer."""
        total = np.zeros((len(LAYERS), D_MODEL), dtype=np.float32)
        for edit, (start, stop) in zip(self.plan.edits, self.spans, strict=True):
            if start <= position < stop:
                for layer, coefficient in edit.coefficients.items():
                    total[layer] += np.float32(coefficient) * edit.direction.layers[layer]
        return total.ravel()

    @cached_property
    def reference(self) -> tuple[list[int], Float32]:
        """The tokens that the request generates, and its readouts at every position that may be forwarded."""
        generated, scores, stream = list[int](), list[list[float]](), 0
        weights = [content(readout.direction) for readout in self.plan.readouts]
        while True:
            position = len(scores)
            tokens = [*self.prompt, *generated]
            stream = enter(stream, tokens[position])
            scores.append([read(stream, w) for w in weights])
            stream = leave(stream, self.change(position).tobytes())
            if position >= len(self.prompt) - 1:
                generated.append(sample(stream))
                if len(generated) == self.max_tokens or generated[-1] == self.stop:
                    return generated, np.array(scores, dtype=np.float32).reshape(len(scores), -1)


def content(direction: Direction) -> bytes:
    nothing = np.zeros(D_MODEL, dtype=np.float32)
    return b"".join(direction.layers.get(layer, nothing).tobytes() for layer in LAYERS)


WORDS = [int(w) for w in np.random.default_rng(3).integers(1, 50, size=(4, 40)).ravel()]


def direction(number: int, layers: tuple[int, ...] = (0, 1)) -> Direction:
    return Direction({n: np.array([number, 10 * number + n] * (D_MODEL // 2), dtype=np.float32) for n in layers})


def edit(number: int, positions: Positions, strength: float = 2.0) -> Edit:
    found = direction(number)
    return Edit("inline", found, dict.fromkeys(found.layers, strength), positions, source="inline")


def probe(number: int, layers: tuple[int, ...] = (0, 1)) -> Readout:
    return Readout("probe", direction(number, layers))


def make_ask(
    name: str, plan: Plan, n_prompt: int = 6, max_tokens: int = 4, stop_at: int | None = None, fork: int = 0
) -> Ask:
    """A request over the first words of a common text, or of one that forks from it after two blocks.

    stop_at: its stop token is what it would generate as this token.
    """
    prompt = tuple((WORDS[:8] + WORDS[40 * fork + 8 :])[:n_prompt])
    ask = Ask(name, prompt, plan, max_tokens)
    if stop_at is None:
        return ask
    return Ask(name, prompt, plan, max_tokens, stop=ask.reference[0][min(stop_at, max_tokens - 1)])
