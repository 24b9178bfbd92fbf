"""Contracts with vLLM's in-process `LLM`: each seam fails here, loudly, when vLLM moves it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from vllm import LLM
from vllm.entrypoints.common.offline import OfflineInferenceMixin
from vllm.v1.engine.core_client import InprocClient, SyncMPClient
from vllm.v1.engine.llm_engine import LLMEngine

from pilothouse.offline import LLM as Ours  # noqa: N811

SIGNATURES: list[tuple[Any, str, list[str]]] = [
    (LLMEngine, "add_request", ["self", "request_id", "prompt", "params"]),
    (LLMEngine, "abort_request", ["self", "request_ids", "internal"]),
    (LLMEngine, "collective_rpc", ["self", "method", "timeout", "args"]),
    (SyncMPClient, "add_request", ["self", "request"]),
    (InprocClient, "add_request", ["self", "request"]),
    (LLM, "_run_engine", ["self", "output_type", "use_tqdm"]),
]


@pytest.mark.parametrize(("owner", "name", "first"), SIGNATURES, ids=lambda value: getattr(value, "__name__", None))
def test_a_seam_has_the_signature_it_was_written_against(owner: Any, name: str, first: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters)[: len(first)] == first


def test_requests_and_outputs_pass_through_what_is_wrapped() -> None:
    added = inspect.getsource(LLMEngine.add_request)
    # Every sequence of a request is known to the output processor before the engine core has it.
    assert added.count("self.output_processor.add_request(") == added.count("self.engine_core.add_request(") == 2
    assert "self.output_processor.process_outputs(" in inspect.getsource(LLMEngine.step)
    assert "self.llm_engine.add_request(" in inspect.getsource(OfflineInferenceMixin._add_request)


@pytest.mark.parametrize("name", ["generate", "chat", "enqueue", "wait_for_completion"])
def test_whatever_waits_for_outputs_ends_in_one_place(name: str) -> None:
    method = {"generate": "_run_completion", "chat": "_run_chat", "enqueue": "_add_completion_requests"}.get(name, name)
    source = inspect.getsource(getattr(LLM, method))
    assert ("self._run_engine(" in source) == (name != "enqueue")


def test_no_method_that_makes_requests_is_overlooked() -> None:
    """What vLLM's class offers beside what is known here may need plans, or a refusal."""
    public = {name for name, _ in inspect.getmembers(LLM, inspect.isfunction) if not name.startswith("_")}
    ours = {"generate", "chat", "enqueue", "enqueue_chat", "beam_search", "encode", "embed", "classify", "score"}
    assert ours <= {name for name in public if getattr(Ours, name) is not getattr(LLM, name)}
    assert public - ours == {
        "apply_model",
        "collective_rpc",
        "finish_weight_update",
        "get_default_sampling_params",
        "get_metrics",
        "get_tokenizer",
        "get_weight_version",
        "get_world_size",
        "init_weight_transfer_engine",
        "release_kv_cache_memory",
        "reset_mm_cache",
        "reset_prefix_cache",
        "shutdown_weight_transfer_engine",
        "sleep",
        "start_draft_weight_update",
        "start_profile",
        "start_weight_update",
        "stop_profile",
        "update_weight_version",
        "update_weights",
        "wait_for_completion",
        "wake_up",
    }
