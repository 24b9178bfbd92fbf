"""Contracts with vLLM: each seam fails here, loudly, when vLLM moves it."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import vllm
from openai.types.responses import ResponseTextDeltaEvent
from vllm.compilation import decorators
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages, wrap_data_with_event
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.context import HarmonyContext, ParsableContext, SimpleContext
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.output_processor import OutputProcessor, RequestState
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from pilothouse.api.names import FIELDS, near_miss
from pilothouse.core.errors import StartupError
from pilothouse.engine import prefix_cache, versions

SIGNATURES: list[tuple[Any, str, list[str]]] = [
    (GPUModelRunner, "_prepare_inputs", ["self", "scheduler_output", "num_scheduled_tokens"]),
    (GPUModelRunner, "execute_model", ["self", "scheduler_output", "intermediate_tensors"]),
    (GPUModelRunner, "sample_tokens", ["self", "grammar_output"]),
    (CPUModelRunner, "load_model", ["self", "load_dummy_weights"]),
    (Scheduler, "schedule", ["self", "throttle_prefills"]),
    (Scheduler, "add_request", ["self", "request"]),
    (Scheduler, "_handle_blocked_waiting_request", ["self", "request"]),
    (Scheduler, "_free_request", ["self", "request", "delay_free_blocks"]),
    (Scheduler, "_update_request_with_output", ["self", "request", "new_token_ids", "is_stale"]),
    (AsyncScheduler, "_update_request_with_output", ["self", "request", "new_token_ids", "is_stale"]),
    (Scheduler, "_get_local_prefix_cache_hit", ["self", "request"]),
    (Scheduler, "reset_prefix_cache", ["self", "reset_running_requests", "reset_connector"]),
    (KVCacheManager, "prefix_cache_lookup_enabled", ["self", "request"]),
    (KVCacheManager, "create_kv_cache_blocks", ["self", "blocks"]),
    (KVCacheCoordinator, "find_longest_cache_hit", ["self", "block_hashes", "max_cache_hit_length"]),
    (Attention, "forward", ["self", "query", "key", "value", "output_shape", "output_dtype"]),
    (AsyncLLM, "collective_rpc", ["self", "method", "timeout", "args"]),
    (Scheduler, "update_from_output", ["self", "scheduler_output", "model_runner_output"]),
    (OutputProcessor, "process_outputs", ["self", "engine_core_outputs"]),
    (AsyncMPClient, "add_request_async", ["self", "request"]),
    (AsyncLLM, "generate", ["self", "prompt", "sampling_params", "request_id"]),
    (OpenAIServingChat, "create_chat_completion", ["self", "request", "raw_request"]),
    (OpenAIServingCompletion, "create_completion", ["self", "request", "raw_request"]),
    (OpenAIServingChat, "chat_completion_stream_generator", ["self", "request", "result_generator", "request_id"]),
    (
        OpenAIServingCompletion,
        "completion_stream_generator",
        ["self", "request", "engine_inputs", "result_generator", "request_id"],
    ),
    (OpenAIServingResponses, "create_responses", ["self", "request", "raw_request"]),
    (OpenAIServingResponses, "_generate_with_builtin_tools", ["self", "request_id", "engine_input", "sampling_params"]),
    *(
        (
            OpenAIServingResponses,
            name,
            ["self", "request", "sampling_params", "result_generator", "context", "model_name"],
        )
        for name in ("responses_full_generator", "responses_stream_generator")
    ),
    (OpenAIServingResponses, "responses_background_stream_generator", ["self", "response_id", "starting_after"]),
    (AnthropicServingMessages, "create_messages", ["self", "request", "raw_request"]),
    (AnthropicServingMessages, "message_stream_converter", ["self", "generator"]),
    (
        AnthropicServingMessages,
        "chat_completion_stream_generator",
        ["self", "request", "result_generator", "request_id"],
    ),
]


@pytest.mark.parametrize(("owner", "name", "first"), SIGNATURES, ids=lambda value: getattr(value, "__name__", None))
def test_an_overridden_method_has_the_signature_it_was_written_against(owner: Any, name: str, first: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters)[: len(first)] == first


def test_a_response_is_generated_by_one_generator_that_its_context_goes_through() -> None:
    source = inspect.getsource(OpenAIServingResponses._create_responses)
    called = source[source.index("self._generate_with_builtin_tools(") :]
    called = called[: called.index("generators.append")]
    for argument in ("request_id", "engine_input", "sampling_params", "context"):
        assert f"{argument}=" in called, "it is passed by name"
    assert source.count("self.responses_stream_generator(") == source.count("await self.responses_full_generator(") == 1
    for name, maker in (
        ("_run_background_request", "responses_full_generator"),
        ("_run_background_request_stream", "responses_stream_generator"),
        ("responses_stream_generator", "responses_full_generator"),
    ):
        assert f"self.{maker}(" in inspect.getsource(getattr(OpenAIServingResponses, name))
    # What tells a response that is several generations from one that is not.
    assert "return False" in inspect.getsource(SimpleContext.need_builtin_tool_call)
    for context in (HarmonyContext, ParsableContext):
        assert "in self.available_tools" in inspect.getsource(context.need_builtin_tool_call)


def test_the_models_of_the_routes_keep_or_drop_what_they_do_not_know() -> None:
    for model in (ResponsesRequest, ResponsesResponse, ResponseCompletedEvent, ResponseTextDeltaEvent):
        assert model.model_config.get("extra") == "allow"
    assert AnthropicMessagesRequest.model_config.get("extra") is None
    assert AnthropicMessagesResponse.model_config.get("extra") is None
    fields = set(ResponsesRequest.model_fields) | set(AnthropicMessagesRequest.model_fields)
    assert not {field for field in fields if near_miss(field) or field in FIELDS}


def test_the_stream_of_a_message_is_text_by_event() -> None:
    assert wrap_data_with_event("{}", "message_delta") == "event: message_delta\ndata: {}\n\n"
    source = inspect.getsource(AnthropicServingMessages.message_stream_converter)
    for event in ("content_block_delta", "message_delta", "error"):
        assert f'"{event}")' in source
    made = inspect.getsource(AnthropicServingMessages.create_messages)
    assert "self.create_chat_completion(" in made
    assert "self.message_stream_converter(" in made


def test_the_scheduler_asks_before_it_admits_and_skips_without_blocking() -> None:
    source = inspect.getsource(Scheduler.schedule)
    asked = source.index("_handle_blocked_waiting_request(request)")
    assert "skip_request(request_queue)" in source[asked : asked + 200]
    assert "_handle_blocked_waiting_request" not in vars(AsyncScheduler)


def test_a_lookup_is_made_of_the_parts_that_prompt_scores_use() -> None:
    source = inspect.getsource(KVCacheManager.get_computed_blocks)
    for part in ("prefix_cache_lookup_enabled(request)", "request.num_tokens - 1", "find_longest_cache_hit("):
        assert part in source
    assert "_get_local_prefix_cache_hit(request)" in inspect.getsource(Scheduler.schedule)
    fields = {field.name for field in dataclasses.fields(CachedRequestData)}
    assert {"req_ids", "resumed_req_ids", "num_computed_tokens"} <= fields


def test_a_forward_context_can_skip_the_compiled_graph() -> None:
    assert "skip_compiled" in inspect.signature(set_forward_context).parameters
    assert "get_forward_context().skip_compiled" in inspect.getsource(decorators)


def test_outputs_carry_what_the_scheduler_puts_in_and_requests_know_their_index() -> None:
    from vllm.v1.engine import EngineCoreOutput

    assert "kv_transfer_params" in EngineCoreOutput.__struct_fields__
    assert "request_index" in inspect.signature(RequestState.__init__).parameters


def test_every_module_that_imports_the_key_function_by_name_is_covered() -> None:
    root = Path(vllm.__file__).parent
    importers = {
        ".".join(("vllm", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if prefix_cache.FUNCTION in path.read_text(encoding="utf-8")
    }
    assert importers == {module.__name__ for module in prefix_cache.CALLERS}


def test_the_key_function_is_replaced_everywhere_once() -> None:
    prefix_cache.install_edit_keys()
    prefix_cache.install_edit_keys()
    functions = {getattr(module, prefix_cache.FUNCTION) for module in prefix_cache.CALLERS}
    assert len(functions) == 1
    (function,) = functions
    assert not hasattr(function.pilothouse_original, "pilothouse_original")


def test_another_vllm_is_refused_with_the_versions_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions.require_supported_vllm() in versions.SUPPORTED
    monkeypatch.setattr(versions, "installed_vllm", lambda: "0.31.0")
    with pytest.raises(StartupError, match=r"0\.31\.0 is not supported; versions that work: 0\.32\.0"):
        versions.require_supported_vllm()
