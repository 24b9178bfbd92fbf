"""Runs of our own outside any batch, on a model that vLLM has given LoRA layers."""

from typing import Any


def without_adapters(runner: Any, n_tokens: int) -> None:
    """Have the next run of `n_tokens` tokens use no adapter: what the layers hold is of the last batch, or of none."""
    if runner.lora_config:
        # vLLM's number for no adapter.
        none = (0,) * n_tokens
        runner._set_active_loras(none, none, set())
