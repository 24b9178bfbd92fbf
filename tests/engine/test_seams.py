"""Contracts with vLLM: each seam fails here, loudly, when vLLM moves it."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import vllm
from engine_support.seams import Tree, changed, moved
from openai.types.responses import ResponseTextDeltaEvent
from vllm.compilation import decorators
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages, wrap_data_with_event
from vllm.entrypoints.openai.responses.context import HarmonyContext, ParsableContext, SimpleContext
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.forward_context import set_forward_context
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core_client import AsyncMPClient, DPAsyncMPClient, DPLBAsyncMPClient
from vllm.v1.engine.output_processor import RequestState

from pilothouse.api.names import FIELDS, near_miss
from pilothouse.core.errors import StartupError
from pilothouse.engine import prefix_cache, versions

INSTALLED = Tree(Path(vllm.__file__).parent)


def test_the_seams_hold_in_the_installed_source() -> None:
    assert moved(INSTALLED) == []
    assert changed(INSTALLED, INSTALLED) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("v1/utils.py", "def run_api_server_worker_proc(", "def run_api_server(", "run_api_server_worker_proc is gone"),
        ("v1/utils.py", "    listen_address, sock, args, client_config", "    sock, args, client_config", "takes"),
        ("v1/utils.py", "target_server_fn or run_api", "run_api", "has no `target_server_fn or"),
        ("v1/request.py", "    FINISHED_STOPPED =", "    FINISHED =", "RequestStatus has no FINISHED_STOPPED"),
        ("v1/utils.py", "import os\n", "import os\n# generate_block_hash_extra_keys\n", "is named by"),
        ("entrypoints/cli/serve.py", "class ServeSubcommand", "class Serve", "ServeSubcommand is gone (launch.py"),
    ],
)
def test_a_seam_that_moved_is_named(file: str, before: str, after: str, said: str) -> None:
    class Altered(Tree):
        def text(self, path: Path) -> str:
            text = super().text(path)
            if path != self.root / file:
                return text
            assert before in text
            return text.replace(before, after)

    found = moved(Altered(INSTALLED.root))
    assert found
    assert all(said in line for line in found), found


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


def test_the_client_of_several_engines_keeps_to_its_choice() -> None:
    client = object.__new__(DPLBAsyncMPClient)
    client.core_engines, client.lb_engines = [b"\0\0", b"\1\0"], [[0, 0, 0.0], [0, 0, 0.0]]
    client.reqs_in_flight, client.engine_inflight = {}, Counter()
    client.client_count, client.eng_start_index = 1, 0
    requests = [SimpleNamespace(request_id=str(i), data_parallel_rank=None, pooling_params=None) for i in range(4)]
    chosen = [client.get_core_engine_for_request(request) for request in requests]
    assert set(chosen) == set(client.core_engines)
    assert [client.get_core_engine_for_request(request) for request in requests] == chosen
    assert client.engine_inflight == {b"\0\0": 2, b"\1\0": 2}, "asking again counts nothing twice"
    asked = SimpleNamespace(request_id="r", data_parallel_rank=1, pooling_params=None)
    assert client.get_core_engine_for_request(asked) == b"\1\0"
    source = inspect.getsource(DPAsyncMPClient.add_request_async)
    assert "self.get_core_engine_for_request(request)" in source
    assert not hasattr(AsyncMPClient, "get_core_engine_for_request")
