"""What this release refuses to start with, until each is shown to work."""

import os
from typing import Any

from pilothouse.core.errors import StartupError
from pilothouse.core.sites import ModelShape

DRAFTED = ("ngram", "draft_model")
"""Where drafts may come from: what has been shown to leave nothing of a rejected one."""


def require_supported_environment() -> None:
    """StartupError for settings outside vLLM's configuration that would bypass the seams."""
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0", "false", "False"):
        raise StartupError("VLLM_USE_RUST_FRONTEND serves HTTP outside Python, where nothing is steered: unset it")


def require_supported_config(vllm_config: Any) -> None:
    """StartupError naming the first setting that cannot work."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    refusals = [
        (model.runner_type != "generate", f"a {model.runner_type} model: only decoder models generate text"),
        (model.is_encoder_decoder, "an encoder-decoder model"),
        (
            parallel.pipeline_parallel_size > 1 and parallel.distributed_executor_backend == "external_launcher",
            "pipeline parallelism under an external launcher",
        ),
        (getattr(parallel, "enable_elastic_ep", False), "elastic expert parallelism: engines come and go"),
        (getattr(parallel, "enable_fault_tolerance", False), "fault tolerance: engines start anew behind their client"),
        (getattr(parallel, "enable_dbo", False), "dual-batch overlap"),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1, "prefill context parallelism"),
        *_speculation(vllm_config),
        (vllm_config.kv_transfer_config is not None, "KV connectors"),
        (_publishes_kv_events(vllm_config), "KV events: their readers know token ids, not what was edited on them"),
        (vllm_config.cache_config.kv_sharing_fast_prefill, "kv_sharing_fast_prefill"),
    ]
    for refused, what in refusals:
        if refused:
            raise StartupError(f"this release of Pilothouse does not serve with {what}")


def _speculation(vllm_config: Any) -> list[tuple[bool, str]]:
    """Drafts are verified, and rejected ones taken back, where the host knows every position."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return []
    ahead = vllm_config.scheduler_config.async_scheduling
    return [
        (speculative.method not in DRAFTED, f"speculative decoding by {speculative.method!r}, only by {DRAFTED}"),
        (ahead, "speculative decoding under asynchronous scheduling: add --no-async-scheduling"),
    ]


def _publishes_kv_events(vllm_config: Any) -> bool:
    events = vllm_config.kv_events_config
    return events is not None and bool(events.enable_kv_cache_events)


def model_shape(vllm_config: Any, sites: tuple[int, ...] | None) -> ModelShape:
    """Width, depth, sites and stages of the configured model, before it is loaded."""
    model = vllm_config.model_config
    n_layers = model.get_total_num_hidden_layers()
    chosen = tuple(range(n_layers)) if sites is None else tuple(sorted(set(sites)))
    if missing := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise StartupError(f"sites {missing} do not exist: the model has layers 0 to {n_layers - 1}")
    drafts = vllm_config.speculative_config is not None
    return ModelShape(model.model, model.get_hidden_size(), n_layers, chosen, _stages(vllm_config, n_layers), drafts)


def _stages(vllm_config: Any, n_layers: int) -> tuple[int, ...]:
    """The pipeline stage of every layer."""
    from vllm.distributed.utils import get_pp_indices

    n_stages = vllm_config.parallel_config.pipeline_parallel_size
    ranges = [get_pp_indices(n_layers, stage, n_stages) for stage in range(n_stages)]
    return tuple(stage for stage, (start, stop) in enumerate(ranges) for _ in range(start, stop))
