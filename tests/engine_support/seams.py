"""The seams to vLLM as data, and whether they hold in a tree of vLLM's source, which need not be installed.

What is looked at is source text, so a release can be tried that does not run here. What has to run to be known stays in
tests/engine/test_seams.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "server" / "pilothouse" / "engine"

SCHEDULER = "vllm.v1.core.sched.scheduler"
ASYNC_SCHEDULER = "vllm.v1.core.sched.async_scheduler"
CACHE_MANAGER = "vllm.v1.core.kv_cache_manager"
RUNNER = "vllm.v1.worker.gpu_model_runner"
RUNNER_V2 = "vllm.v1.worker.gpu.model_runner"
CLIENT = "vllm.v1.engine.core_client"
SERVE = "vllm.entrypoints.cli.serve"
CHAT = "vllm.entrypoints.openai.chat_completion.serving"
COMPLETION = "vllm.entrypoints.openai.completion.serving"
RESPONSES = "vllm.entrypoints.openai.responses.serving"
MESSAGES = "vllm.entrypoints.anthropic.serving"
_GENERATES = ["self", "request", "sampling_params", "result_generator", "context", "model_name"]
KEY_FUNCTION = "generate_block_hash_extra_keys"

SIGNATURES: list[tuple[str, str, list[str]]] = [
    (RUNNER, "GPUModelRunner._prepare_inputs", ["self", "scheduler_output", "num_scheduled_tokens"]),
    (RUNNER, "GPUModelRunner.execute_model", ["self", "scheduler_output", "intermediate_tensors"]),
    (RUNNER, "GPUModelRunner.sample_tokens", ["self", "grammar_output"]),
    (RUNNER, "GPUModelRunner._dummy_run", ["self", "num_tokens"]),
    (
        RUNNER,
        "GPUModelRunner.sync_and_gather_intermediate_tensors",
        ["self", "num_tokens", "intermediate_tensors", "sync_self"],
    ),
    (
        "vllm.v1.worker.lora_model_runner_mixin",
        "LoRAModelRunnerMixin._set_active_loras",
        ["self", "prompt_lora_mapping", "token_lora_mapping", "lora_requests"],
    ),
    ("vllm.distributed.utils", "get_pp_indices", ["num_hidden_layers", "pp_rank", "pp_size"]),
    (RUNNER, "GPUModelRunner.capture_model", ["self"]),
    (RUNNER_V2, "GPUModelRunner.prepare_inputs", ["self", "scheduler_output"]),
    (RUNNER_V2, "GPUModelRunner.execute_model", ["self", "scheduler_output", "intermediate_tensors"]),
    (RUNNER_V2, "GPUModelRunner.sample_tokens", ["self", "grammar_output"]),
    ("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.load_model", ["self", "load_dummy_weights"]),
    (SCHEDULER, "Scheduler.schedule", ["self", "throttle_prefills"]),
    (SCHEDULER, "Scheduler.add_request", ["self", "request"]),
    (SCHEDULER, "Scheduler._handle_blocked_waiting_request", ["self", "request"]),
    (SCHEDULER, "Scheduler._free_request", ["self", "request", "delay_free_blocks"]),
    (SCHEDULER, "Scheduler._update_request_with_output", ["self", "request", "new_token_ids", "is_stale"]),
    (ASYNC_SCHEDULER, "AsyncScheduler._update_request_with_output", ["self", "request", "new_token_ids", "is_stale"]),
    (SCHEDULER, "Scheduler._get_local_prefix_cache_hit", ["self", "request"]),
    (SCHEDULER, "Scheduler.reset_prefix_cache", ["self", "reset_running_requests", "reset_connector"]),
    (SCHEDULER, "Scheduler.update_from_output", ["self", "scheduler_output", "model_runner_output"]),
    (CACHE_MANAGER, "KVCacheManager.prefix_cache_lookup_enabled", ["self", "request"]),
    (CACHE_MANAGER, "KVCacheManager.create_kv_cache_blocks", ["self", "blocks"]),
    (
        "vllm.v1.core.kv_cache_coordinator",
        "KVCacheCoordinator.find_longest_cache_hit",
        ["self", "block_hashes", "max_cache_hit_length"],
    ),
    ("vllm.v1.core.kv_cache_utils", KEY_FUNCTION, ["request", "start_token_idx", "end_token_idx", "start_mm_idx"]),
    (
        "vllm.model_executor.layers.attention.attention",
        "Attention.forward",
        ["self", "query", "key", "value", "output_shape", "output_dtype"],
    ),
    ("vllm.v1.engine.async_llm", "AsyncLLM.collective_rpc", ["self", "method", "timeout", "args"]),
    ("vllm.v1.engine.async_llm", "AsyncLLM.generate", ["self", "prompt", "sampling_params", "request_id"]),
    ("vllm.v1.engine.output_processor", "OutputProcessor.process_outputs", ["self", "engine_core_outputs"]),
    (CLIENT, "AsyncMPClient.add_request_async", ["self", "request"]),
    (CLIENT, "DPAsyncMPClient.add_request_async", ["self", "request"]),
    (CLIENT, "DPLBAsyncMPClient.get_core_engine_for_request", ["self", "request"]),
    (CHAT, "OpenAIServingChat.create_chat_completion", ["self", "request", "raw_request"]),
    (
        CHAT,
        "OpenAIServingChat.chat_completion_stream_generator",
        ["self", "request", "result_generator", "request_id"],
    ),
    (COMPLETION, "OpenAIServingCompletion.create_completion", ["self", "request", "raw_request"]),
    (
        COMPLETION,
        "OpenAIServingCompletion.completion_stream_generator",
        ["self", "request", "engine_inputs", "result_generator", "request_id"],
    ),
    (RESPONSES, "OpenAIServingResponses.create_responses", ["self", "request", "raw_request"]),
    (
        RESPONSES,
        "OpenAIServingResponses._generate_with_builtin_tools",
        ["self", "request_id", "engine_input", "sampling_params"],
    ),
    (RESPONSES, "OpenAIServingResponses.responses_full_generator", _GENERATES),
    (RESPONSES, "OpenAIServingResponses.responses_stream_generator", _GENERATES),
    (
        RESPONSES,
        "OpenAIServingResponses.responses_background_stream_generator",
        ["self", "response_id", "starting_after"],
    ),
    (MESSAGES, "AnthropicServingMessages.create_messages", ["self", "request", "raw_request"]),
    (MESSAGES, "AnthropicServingMessages.message_stream_converter", ["self", "generator"]),
    ("vllm.v1.utils", "run_api_server_worker_proc", ["listen_address", "sock", "args", "client_config"]),
    (SERVE, "run_multi_api_server", ["args"]),
    (SERVE, "run_headless", ["args"]),
    ("vllm.entrypoints.launchers.api_server.entry", "build_and_serve", ["engine_client", "listen_address", "sock"]),
    (
        "vllm.entrypoints.launchers.api_server.app_state",
        "init_app_state",
        ["engine_client", "state", "args", "supported_tasks"],
    ),
    (
        "vllm.plugins.endpoint_plugins.interface",
        "init_endpoint_plugins_state",
        ["engine_client", "state", "args"],
    ),
    (
        "vllm.compilation.wrapper",
        "TorchCompileWithNoGuardsWrapper.__init__",
        ["self", "compile_prefix", "is_encoder"],
    ),
]
"""Module, function, and the parameters that it begins with: what we override, replace or call."""

PARTS: list[tuple[str, str, list[str]]] = [
    (
        SCHEDULER,
        "Scheduler.schedule",
        [
            "self._handle_blocked_waiting_request(request)",
            "request_queue)",
            "self._get_local_prefix_cache_hit(request)",
        ],
    ),
    (
        CACHE_MANAGER,
        "KVCacheManager.get_computed_blocks",
        ["self.prefix_cache_lookup_enabled(request)", "request.num_tokens - 1", "find_longest_cache_hit("],
    ),
    (
        SCHEDULER,
        "Scheduler._handle_blocked_waiting_request",
        ["return False", "return True", "self.grammar_compile_error_reqs.add(request.request_id)"],
    ),
    (CLIENT, "DPAsyncMPClient.add_request_async", ["self.get_core_engine_for_request(request)"]),
    (CLIENT, "DPLBAsyncMPClient.get_core_engine_for_request", ["self.reqs_in_flight.get(request.request_id)"]),
    ("vllm.v1.utils", "APIServerProcessManager.__init__", ["target_server_fn or run_api_server_worker_proc"]),
    ("vllm.entrypoints.launchers.api_server.entry", "build_and_serve", ["await init_app_state("]),
    (
        "vllm.compilation.decorators",
        "_support_torch_compile",
        [
            "if self.do_not_compile or torch.compiler.is_compiling():",
            "get_forward_context().skip_compiled",
            "getattr(self, 'aot_compiled_fn', None)",
            "aot_compile_hash_factors(self.vllm_config)",
            "self.was_aot_compile_fn_loaded_from_disk = True",
            "if self.compiled:",
            "cls.__call__ = __call__",
        ],
    ),
    ("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.warming_up_model", ["self.profile_run()"]),
]
"""Module, function, and what its text has in it."""

MEMBERS: list[tuple[str, str, list[str]]] = [
    (
        SCHEDULER,
        "Scheduler",
        ["grammar_compile_error_reqs", "hash_block_size", "kv_cache_manager", "current_step", "requests"],
    ),
    ("vllm.v1.core.sched.output", "CachedRequestData", ["req_ids", "resumed_req_ids", "num_computed_tokens"]),
    (
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        ["num_scheduled_tokens", "scheduled_new_reqs", "scheduled_spec_decode_tokens"],
    ),
    (CACHE_MANAGER, "KVCacheManager", ["empty_kv_cache_blocks", "coordinator"]),
    ("vllm.v1.engine", "EngineCoreOutput", ["kv_transfer_params", "request_id", "finish_reason"]),
    ("vllm.v1.engine", "EngineCoreRequest", ["sampling_params", "client_index", "data_parallel_rank"]),
    ("vllm.v1.engine.output_processor", "RequestState", ["request_index"]),
    (RUNNER, "GPUModelRunner", ["input_batch", "max_num_tokens", "compilation_config", "device"]),
    ("vllm.v1.worker.gpu.input_batch", "InputBatch", ["req_ids", "num_scheduled_tokens", "num_computed_tokens_np"]),
    ("vllm.v1.request", "RequestStatus", ["FINISHED_STOPPED"]),
    (CLIENT, "MPClient", ["core_engines"]),
    ("vllm.sampling_params", "SamplingParams", ["extra_args", "output_kind"]),
]
"""Module, class, and what its objects have."""

CALLERS = {"vllm.v1.core.kv_cache_utils", "vllm.v1.core.block_pool", "vllm.v1.simple_kv_offload.manager"}
"""Every module that names the function of the cache's keys."""


@dataclass(frozen=True)
class Tree:
    """The folder `vllm` of a release."""

    root: Path

    def module(self, name: str) -> ast.Module | None:
        """The source of a module, None where there is none."""
        path = self.root.joinpath(*name.split(".")[1:])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return _parsed(self.text(file))
        return None

    def text(self, file: Path) -> str:
        """The text of one of its files."""
        return file.read_text(encoding="utf-8")

    def find(self, module: str, name: str) -> ast.AST | None:
        """A class, or a function of a module or a class, by its dotted name."""
        found: ast.AST | None = self.module(module)
        for part in name.split("."):
            if found is None:
                return None
            found = next((node for node in _definitions(found) if node.name == part), None)
        return found

    def defines(self, module: str, name: str) -> bool:
        """Whether `from module import name` finds something."""
        source = self.module(module)
        if source is None:
            return False
        return self.module(f"{module}.{name}") is not None or name in set(_names(source))


@lru_cache(maxsize=256)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def moved(tree: Tree) -> list[str]:
    """What does not hold in `tree`, one line for each seam."""
    return [*_imports(tree), *_signatures(tree), *_parts(tree), *_members(tree), *_callers(tree)]


def changed(old: Tree, new: Tree) -> list[str]:
    """Functions of the seams that hold in both but whose text is not the same: what to read again."""
    found = []
    for module, name, _ in SIGNATURES:
        before, after = old.find(module, name), new.find(module, name)
        if before is not None and after is not None and ast.dump(before) != ast.dump(after):
            found.append(f"{module}: {name}")
    return found


def _imports(tree: Tree) -> Iterator[str]:
    for file in sorted(ENGINE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                gone = [alias.name for alias in node.names if not tree.defines(str(node.module), alias.name)]
                yield from (f"{node.module}: {name} is gone ({file.name} imports it)" for name in gone)


def _signatures(tree: Tree) -> Iterator[str]:
    for module, name, first in SIGNATURES:
        function = tree.find(module, name)
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module}: {name} is gone"
            continue
        arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        if arguments[: len(first)] != first:
            yield f"{module}: {name} takes {arguments}, not {first} first"


def _parts(tree: Tree) -> Iterator[str]:
    for module, name, parts in PARTS:
        function = tree.find(module, name)
        text = "" if function is None else ast.unparse(function)
        for part in parts:
            if part not in text:
                yield f"{module}: {name} has no `{part}`"


def _members(tree: Tree) -> Iterator[str]:
    for module, name, members in MEMBERS:
        found = tree.find(module, name)
        has = set() if found is None else set(_names(found)) | set(_attributes(found))
        for member in members:
            if member not in has:
                yield f"{module}: {name} has no {member}"


def _callers(tree: Tree) -> Iterator[str]:
    found = {
        ".".join(("vllm", *path.relative_to(tree.root).with_suffix("").parts))
        for path in tree.root.rglob("*.py")
        if KEY_FUNCTION in tree.text(path)
    }
    if found != CALLERS:
        yield f"{KEY_FUNCTION} is named by {sorted(found)}, not by {sorted(CALLERS)}"


def _definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What a module or a class defines, also under a condition."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _definitions(child)


def _names(node: ast.AST) -> Iterator[str]:
    """Names that a module or a class binds: definitions, assignments, imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child.name
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in child.names)
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _names(child)


def _attributes(node: ast.AST) -> Iterator[str]:
    """What the methods of a class set on its objects."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            yield child.attr
