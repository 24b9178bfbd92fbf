"""Tiny random models, and the few engines that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_support.harness import Engine, Reference, tight_engine
from engine_support.tiny import save_model

from pilothouse.core.config import EngineLayout

os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


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
    """Qwen3, eager: prompts cut into chunks of 16, room for four rows, and a cache so small that it preempts."""
    tight = {"block_size": 32, "num_gpu_blocks_override": 20, "long_prefill_token_threshold": 16}
    engine = Engine(
        qwen3, EngineLayout(rows=4, rows_per_plan=4, chains=2, readouts=4), in_process=True, enforce_eager=True, **tight
    )
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
