"""A model that computes nothing, and what requests to it must give.

A token's "stream" is a checksum of the stream before it and of the token; what an edit adds goes into the checksum that
the next token sees. So a row of another plan, a score at another position or a past that is not the request's own
changes a number that can be told. `Ask.reference` computes it all from the plan alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Gate, Positions
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
    gather: bool = False

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        return edit_spans(self.plan.edits, len(self.prompt))

    @property
    def read_from(self) -> int:
        return 0 if self.plan.prompt_scores else len(self.prompt) - 1

    def change(self, position: int, scores: Sequence[Sequence[float]]) -> bytes:
        """What the plan does to the stream at `position`: what it adds, layer after layer, and then its steps.

        scores: the readouts at the positions before.
        """
        total = np.zeros((len(LAYERS), D_MODEL), dtype=np.float32)
        steps = b""
        for edit, (start, stop) in zip(self.plan.edits, self.spans, strict=True):
            if not start <= position < stop or edit.is_identity():
                continue
            if not edit.summable:
                steps += self._step(edit, position, scores)
                continue
            for layer, coefficient in edit.coefficients.items():
                total[layer] += np.float32(coefficient) * edit.direction.layers[layer]
        return total.tobytes() + steps

    def _step(self, edit: Edit, position: int, scores: Sequence[Sequence[float]]) -> bytes:
        gate = edit.gate
        if gate is not None and gate.latched:
            seen = [row[self.number(gate)] for row in scores[1:position]]
            if not any(beyond(gate, score) for score in seen):
                return b""
        shown = b""
        for layer in LAYERS:
            rows = edit.direction.layers[layer], (edit.reader or edit).direction.layers[layer]
            rule = edit.rule(layer)
            shown += step_bytes(rule.writes * rows[0], rule.reads * rows[1], rule[:6], edit.preserve_norm)
        if gate is None or gate.latched:
            return shown
        return shown + gate_bytes(content(gate.readout), gate.above, gate.level)

    def edited(self, position: int) -> bool:
        """Whether the plan has an edit at `position`, its gate open or not."""
        return any(
            start <= position < stop and not edit.is_identity()
            for edit, (start, stop) in zip(self.plan.edits, self.spans, strict=True)
        )

    def number(self, gate: Gate) -> int:
        """Which readout the gate looks at."""
        return [readout.direction.digest for readout in self.plan.readouts].index(gate.readout.digest)

    def _stops(self, scores: Sequence[Sequence[float]]) -> bool:
        """Whether one of the plan's gates ends the sequence behind these readouts."""
        return any(
            beyond(edit.gate, row[self.number(edit.gate)])
            for edit, (start, stop) in zip(self.plan.edits, self.spans, strict=True)
            if edit.gate is not None and edit.gate.stops
            for row in scores[start:stop]
        )

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
            stream = leave(stream, self.change(position, scores))
            if position >= len(self.prompt) - 1:
                generated.append(sample(stream))
                ends = len(generated) == self.max_tokens or generated[-1] == self.stop
                if ends or self._stops(scores):
                    return generated, np.array(scores, dtype=np.float32).reshape(len(scores), -1)


def beyond(gate: Gate, score: float) -> bool:
    return score > gate.level if gate.above else score < gate.level


def step_bytes(writer: Float32, reader: Float32, numbers: Sequence[float], preserve_norm: bool) -> bytes:
    """One step at one layer, as the worker's bank should hold it."""
    rows = np.concatenate([writer, reader]).astype(np.float32)
    return rows.tobytes() + np.array([*numbers, preserve_norm], dtype=np.float32).tobytes()


def gate_bytes(weights: bytes, above: bool, level: float) -> bytes:
    return weights + bytes([above]) + np.float32(level).tobytes()


def content(direction: Direction) -> bytes:
    nothing = np.zeros(D_MODEL, dtype=np.float32)
    return b"".join(direction.layers.get(layer, nothing).tobytes() for layer in LAYERS)


WORDS = [int(w) for w in np.random.default_rng(3).integers(1, 50, size=(4, 40)).ravel()]


def direction(number: int, layers: tuple[int, ...] = (0, 1)) -> Direction:
    return Direction({n: np.array([number, 10 * number + n] * (D_MODEL // 2), dtype=np.float32) for n in layers})


def edit(number: int, positions: Positions, strength: float = 2.0, **settings: Any) -> Edit:
    found = direction(number)
    return Edit("inline", found, dict.fromkeys(found.layers, strength), positions, source="inline", **settings)


def chained(number: int, positions: Positions, **settings: Any) -> Edit:
    """An edit that cannot be summed."""
    found = direction(number)
    return Edit("inline", found, dict.fromkeys(found.layers, 1.0), positions, "set", source="inline", **settings)


def gate(number: int, share: float, scope: Literal["token", "rest"] = "token", stops: bool = False) -> Gate:
    """A gate that is open at about this share of the positions."""
    return Gate("probe", direction(number), True, 100_000 * (1 - share), scope, stops)


def probe(number: int, layers: tuple[int, ...] = (0, 1)) -> Readout:
    return Readout("probe", direction(number, layers))


def make_ask(
    name: str,
    plan: Plan,
    n_prompt: int = 6,
    max_tokens: int = 4,
    stop_at: int | None = None,
    fork: int = 0,
    gather: bool = False,
) -> Ask:
    """A request over the first words of a common text, or of one that forks from it after two blocks.

    stop_at: its stop token is what it would generate as this token; gather: its readings may wait for its end.
    """
    prompt = tuple((WORDS[:8] + WORDS[40 * fork + 8 :])[:n_prompt])
    ask = Ask(name, prompt, plan, max_tokens, gather=gather)
    if stop_at is None:
        return ask
    generated, _ = ask.reference
    return replace(ask, stop=generated[min(stop_at, len(generated) - 1)])
