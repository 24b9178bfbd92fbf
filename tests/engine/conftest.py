"""Tiny random models, and the few engines that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support.harness import Engine, Reference, tight_engine
from engine_support.plans import SINK

from pilothouse.core.config import EngineLayout

os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    # Large enough that attention and the residual stream are far from trivial.
    "initializer_range": 0.2,
}

SINK_SCALE = 200.0
"""Makes the stream of this token several times as long as those of others, as BOS is in real models."""


def save_model(kind: str, folder: Path) -> Path:
    """A random model of the architecture `kind`, the same in every run."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(7)
    makers = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config, model = makers[kind]
    made = model(config(**SHAPE))
    with torch.no_grad():
        made.get_input_embeddings().weight[SINK] *= SINK_SCALE
    made.save_pretrained(folder / kind)
    return folder / kind


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the random models are made in."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def llama(models: Path) -> Path:
    return save_model("llama", models)


@pytest.fixture(scope="session")
def qwen3(models: Path) -> Path:
    return save_model("qwen3", models)


@pytest.fixture(scope="session")
def compiled_llama(llama: Path) -> Iterator[tuple[Engine, Reference]]:
    """Llama as a server runs it: compiled, prefix caching on, blocks of 32 tokens."""
    engine = Engine(llama, EngineLayout(), block_size=32)
    yield engine, Reference(llama)
    engine.close()


@pytest.fixture(scope="session")
def stock_llama(llama: Path) -> Iterator[Engine]:
    """The same Llama in vLLM as it comes: nothing of ours in it."""
    engine = Engine(llama, None, block_size=32)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def eager_qwen3(qwen3: Path) -> Iterator[tuple[Engine, Reference]]:
    """Qwen3, eager: prompts cut into chunks of 16, room for two plans, and a cache so small that it preempts."""
    tight = {"block_size": 32, "num_gpu_blocks_override": 20, "long_prefill_token_threshold": 16}
    engine = Engine(qwen3, EngineLayout(slots=2, chains=2, readouts=4), in_process=True, enforce_eager=True, **tight)
    yield engine, Reference(qwen3)
    engine.close()


@pytest.fixture(scope="session")
def tight_qwen3(qwen3: Path) -> Iterator[tuple[Engine, Reference]]:
    engine = tight_engine(qwen3)
    yield engine, Reference(qwen3)
    engine.close()


@pytest.fixture(scope="session")
def tightest_qwen3(qwen3: Path) -> Iterator[tuple[Engine, Reference]]:
    """Hardly more blocks than the longest sequence needs: much is preempted, little stays cached."""
    engine = tight_engine(qwen3, blocks=10)
    yield engine, Reference(qwen3)
    engine.close()
