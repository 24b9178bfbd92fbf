"""Ways to run one engine, each through the whole battery."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_support.harness import Engine, Reference
from engine_support.lora import make_adapter
from engine_support.tiny import save_model
from matrix_support.battery import CHECKS, Gathered, gather

from pilothouse.core.config import EngineLayout

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

TWO_CORES = "0|1"
"""Each rank has a core of its own: vLLM binds them by itself only where there are several memory nodes."""

PROCESSES: dict[str, dict[str, Any]] = {
    "one engine, compiled": {},
    "tensor parallel 2": {"tensor_parallel_size": 2},
    "pipeline parallel 2": {"pipeline_parallel_size": 2, "enforce_eager": True},
    "pipeline parallel 2, compiled": {"pipeline_parallel_size": 2},
    "Ray executor": {"distributed_executor_backend": "ray", "enforce_eager": True},
    "Ray executor, pipeline parallel 2": {
        "distributed_executor_backend": "ray",
        "pipeline_parallel_size": 2,
        "enforce_eager": True,
    },
}
DRAFTS: dict[str, dict[str, Any]] = {
    "n-gram drafts": {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1},
    "draft model": {"method": "draft_model"},
}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("ways"))


@pytest.fixture(scope="module")
def processes(way: str, llama: Path) -> Iterator[Gathered]:
    """An engine in processes of its own."""
    with pytest.MonkeyPatch.context() as patch:
        options = PROCESSES[way]
        if options.get("distributed_executor_backend") == "ray":
            _require_ray()
        if "2" in way:
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", TWO_CORES)
            options = {"distributed_executor_backend": "mp", **options}
        engine = Engine(llama, EngineLayout(), block_size=32, **options)
        yield gather(engine, Reference(llama))
        engine.close()


def _require_ray() -> None:
    """vLLM runs its workers in Ray on some platforms only; where it does not, it says so as it starts."""
    from vllm.platforms import current_platform
    from vllm.v1.executor import ray_utils

    refusal = "does not support ray."
    assert refusal in inspect.getsource(ray_utils.initialize_ray_cluster)
    if not current_platform.ray_device_key:
        pytest.skip(f"current platform {current_platform.device_name} {refusal}")


@pytest.mark.slow
@pytest.mark.cell("ways", "{way}", "{check}")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("way", PROCESSES, scope="module")
def test_processes(processes: Gathered, check: str) -> None:
    CHECKS[check](processes)


@pytest.fixture(scope="module")
def drafts(way: str, llama: Path) -> Iterator[Gathered]:
    """An engine that verifies drafts, of which some are right and some are wrong. The draft model is the model itself,
    without steering."""
    settings: dict[str, Any] = {"num_speculative_tokens": 3, **DRAFTS[way]}
    if way == "draft model":
        settings["model"] = str(llama)
    engine = Engine(llama, EngineLayout(), block_size=32, enforce_eager=True, speculative_config=settings)
    # Long enough for the model to repeat itself, which is what n-grams guess.
    found = gather(engine, Reference(llama), latches=False, max_tokens=30)
    drafted, accepted = (_count(engine, f"vllm:spec_decode_num_{what}_tokens") for what in ("draft", "accepted"))
    assert min(accepted, drafted - accepted) > 20, f"{accepted} of {drafted} drafts accepted"
    yield found
    engine.close()


def _count(engine: Engine, name: str) -> int:
    return sum(int(metric.value) for metric in engine.llm.get_metrics() if metric.name == name)


@pytest.mark.slow
@pytest.mark.cell("ways", "{way}", "{check}")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("way", DRAFTS, scope="module")
def test_drafts(drafts: Gathered, check: str) -> None:
    CHECKS[check](drafts)


@pytest.fixture(scope="module")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gathered]:
    """All requests with an adapter; the reference has it merged into its weights."""
    from vllm.lora.request import LoRARequest

    folder, merged = make_adapter(llama, tmp_path_factory.mktemp("lora"), 1)
    engine = Engine(
        llama,
        EngineLayout(),
        block_size=32,
        in_process=True,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=8,
    )
    engine.lora = LoRARequest("one", 1, str(folder))
    yield gather(engine, Reference(merged))
    engine.close()


@pytest.mark.cell("ways", "LoRA adapters", "{check}")
@pytest.mark.parametrize("check", CHECKS)
def test_adapters(adapters: Gathered, check: str) -> None:
    CHECKS[check](adapters)
