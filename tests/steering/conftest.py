import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pilothouse.core.sites import Float32, ModelShape

BOS, ANSWER, END = 1, 2, 3
ROLES = {"system": 4, "user": 5, "assistant": ANSWER}


class CharacterSource:
    """A model of 3 layers whose tokens are characters; `+` and `-` anywhere plant a direction at every later token."""

    def __init__(self, directions: Mapping[int, Float32], noise: float = 0.0) -> None:
        d_model = len(next(iter(directions.values())))
        self.shape = ModelShape("org/character-model", d_model, 3, tuple(sorted(directions)))
        self.directions = directions
        self.noise = noise
        self.batch_sizes: list[int] = []
        self.prompts: list[Sequence[int]] = []

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        if isinstance(item, str):
            return [BOS, *map(ord, item)]
        turns = [[ROLES[message["role"]], *map(ord, message["content"]), END, ord("\n")] for message in item]
        return [BOS, *(token for turn in turns for token in turn), *([ANSWER] if add_generation_prompt else [])]

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Float32]]:
        self.batch_sizes.append(len(prompts))
        self.prompts.extend(prompts)
        return [{layer: self.stream(prompt, layer) for layer in layers} for prompt in prompts]

    def stream(self, prompt: Sequence[int], layer: int) -> Float32:
        rng = np.random.default_rng(zlib.crc32(bytes(str((list(prompt), layer)), "ascii")))
        sign = np.cumsum([(token == ord("+")) - (token == ord("-")) for token in prompt])
        planted = sign[:, None] * self.directions[layer][None]
        rows = 5.0 + planted + self.noise * rng.standard_normal((len(prompt), self.shape.d_model))
        # The first position is an outlier, as attention sinks are: whoever averages over it is found out.
        rows[0] = 1e4
        return rows.astype(np.float32)

    def close(self) -> None: ...


@pytest.fixture
def make_source() -> Callable[..., CharacterSource]:
    return CharacterSource


@pytest.fixture
def shape() -> ModelShape:
    return ModelShape("org/tiny", 4, 6, (0, 1, 2, 3, 5))


VECTOR_CARD: dict[str, Any] = {"format": 1, "kind": "vector", "name": "honest"}


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a vector's file with the library alone, so that what is read was not written by what reads."""

    def write(
        tensors: Mapping[str, Any] | None = None, card: Any = VECTOR_CARD, name: str = "v.safetensors", **changes: Any
    ) -> Path:
        rows = {"layer.2": np.arange(4, dtype=np.float32)} if tensors is None else dict(tensors)
        text = card if isinstance(card, str) else json.dumps({**card, **changes})
        path = tmp_path / name
        path.write_bytes(save(rows, metadata={"pilothouse": text}))
        return path

    return write
