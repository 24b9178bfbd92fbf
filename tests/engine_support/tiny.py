"""Random models of a size that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine_support.plans import SINK

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
