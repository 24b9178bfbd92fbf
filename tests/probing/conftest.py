import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pilothouse.core.sites import Float32, ModelShape
from pilothouse.probing import Probe


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


BOS, ANSWER, END = 1, 2, 3
ROLES = {"system": 4, "user": 5, "assistant": ANSWER}


class CharacterSource:
    """Tokens are characters. After a `+` the stream is shifted along each layer's planted direction, after a `-`
    against it, until the next mark; everything else is noise that depends on the prompt alone."""

    def __init__(self, directions: Mapping[int, Float32], noise: float = 1.0) -> None:
        d_model = len(next(iter(directions.values())))
        self.shape = ModelShape("org/character-model", d_model, 8, tuple(sorted(directions)))
        self.directions = directions
        self.noise = noise
        self.prompts_read = 0

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        if isinstance(item, str):
            return [BOS, *map(ord, item)]
        turns = [[ROLES[message["role"]], *map(ord, message["content"]), END, ord("\n")] for message in item]
        return [BOS, *(token for turn in turns for token in turn), *([ANSWER] if add_generation_prompt else [])]

    def offsets(self, item: str | Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
        ids = self.encode(item)
        text = item if isinstance(item, str) else item[-1]["content"]
        first = 1 if isinstance(item, str) else len(ids) - len(text) - 2
        return [(i - first, i - first + 1) if first <= i < first + len(text) else (0, 0) for i in range(len(ids))]

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Float32]]:
        self.prompts_read += len(prompts)
        return [{layer: self.stream(prompt, layer) for layer in layers} for prompt in prompts]

    def stream(self, prompt: Sequence[int], layer: int) -> Float32:
        rng = np.random.default_rng(zlib.crc32(bytes(str((list(prompt), layer)), "ascii")))
        sign, signs = 0, []
        for token in prompt:
            sign = {ord("+"): 1, ord("-"): -1, END: 0}.get(token, sign)
            signs.append(sign)
        noise = self.noise * rng.standard_normal((len(prompt), self.shape.d_model))
        rows = 3.0 + np.array(signs)[:, None] * self.directions[layer][None] + noise
        rows[0] = 1e4
        return rows.astype(np.float32)

    def close(self) -> None: ...


@pytest.fixture
def make_source() -> Callable[..., CharacterSource]:
    return CharacterSource


@pytest.fixture
def make_probe() -> Callable[..., Probe]:
    def make(**changes: Any) -> Probe:
        basic: dict[str, Any] = {
            "name": "truth",
            "label": "true",
            "alarm": "low",
            "aggregate": "worst_ema",
            "threshold": 0.5,
            "weights": {3: f32([1, -2, 0.5, 0])},
        }
        return Probe(**{**basic, **changes})

    return make
