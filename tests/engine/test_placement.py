"""Where sites are placed, and what is refused because they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_support import plans as make
from engine_support.harness import Engine, Reference
from engine_support.parity import check
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError
from pilothouse.engine.placement import find_blocks

TINY: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}


class Mixer(nn.Module, AttentionLayerBase):  # type: ignore[misc]
    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Mixer()


class Model(nn.Module):
    def __init__(self, *lists: nn.ModuleList) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.ModuleList(part) for part in lists])


def test_the_list_of_blocks_with_attention_is_found_whatever_it_is_called() -> None:
    blocks = nn.ModuleList([Block() for _ in range(3)])
    model = Model(nn.ModuleList([nn.Linear(1, 1) for _ in range(3)]), blocks)
    assert list(find_blocks(model, 3)) == [0, 1, 2]
    assert find_blocks(model, 3)[1] is next(m for m in model.modules() if m is blocks[1])


@pytest.mark.parametrize("n_lists", [0, 2])
def test_no_list_or_two_lists_are_refused(n_lists: int) -> None:
    lists = [nn.ModuleList([Block() for _ in range(3)]) for _ in range(n_lists)]
    with pytest.raises(StartupError, match="cannot place sites in Model"):
        find_blocks(Model(*lists), 3)


@pytest.mark.engine
def test_blocks_that_return_the_stream_itself_are_read_and_edited(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=4, n_head=2, n_positions=256, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    engine = Engine(tmp_path, EngineLayout(), enforce_eager=True)
    try:
        rng = np.random.default_rng(1)
        prompts, plans = make.prompts(rng, 6), make.mixed_plans(rng, 6)
        reference = Reference(tmp_path)
        results = engine.run(prompts, plans, 6)
        assert sum(check(reference, *case) for case in zip(prompts, plans, results, strict=True)) > 0
    finally:
        engine.close()


@pytest.mark.engine
def test_a_residual_that_nobody_reads_is_refused_in_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import StableLmConfig, StableLmForCausalLM

    from pilothouse.engine.failure import FAILURE_FILE_ENV, reported_failure

    StableLmForCausalLM(StableLmConfig(**TINY, num_key_value_heads=2, intermediate_size=128)).save_pretrained(tmp_path)
    monkeypatch.setenv(FAILURE_FILE_ENV, str(tmp_path / "failure"))
    with pytest.raises(RuntimeError):
        Engine(tmp_path, EngineLayout(), enforce_eager=True)
    assert reported_failure() == (
        "cannot place sites: the residual that StablelmDecoderLayer returns is read by nobody"
    )
