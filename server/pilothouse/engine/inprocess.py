"""A vLLM engine in this process, with the seams in place, for requests that come without HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any

from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.errors import StartupError
from pilothouse.core.serving import RequestSession
from pilothouse.engine.client import SteeringClient


async def start_engine(config: Any, layout: EngineLayout) -> Any:
    """An AsyncLLM on the running event loop; each of its requests must bring its session along.

    config: a VllmConfig made with `engine_options(layout)`.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    SteeringClient(engine, layout, _no_defaults, Limits().adhoc_cache_bytes).install()
    return engine


def encode_item(tokenizer: Any, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool) -> list[int]:
    """Token ids of a raw text, with the tokenizer's special tokens, or of a chat in the model's template."""
    if isinstance(item, str):
        return list(tokenizer.encode(item))
    text = tokenizer.apply_chat_template(list(item), tokenize=False, add_generation_prompt=add_generation_prompt)
    return list(tokenizer.encode(text, add_special_tokens=False))


def _no_defaults() -> RequestSession:
    raise StartupError("a request without HTTP came without its session")
