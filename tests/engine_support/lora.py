"""A LoRA adapter of a tiny Llama in the files of PEFT, and the model with the adapter merged into its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK, ALPHA = 4, 8
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_adapter(model: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """The folder of a random adapter, large enough to change every answer, and that of the merged model."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    merged: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(merged.model.layers):
        for target in TARGETS:
            weight = layer.get_submodule(target).weight
            low = torch.randn(RANK, weight.shape[1], generator=generator) * 0.2
            high = torch.randn(weight.shape[0], RANK, generator=generator) * 0.2
            name = f"base_model.model.model.layers.{i}.{target}"
            tensors |= {f"{name}.lora_A.weight": low, f"{name}.lora_B.weight": high}
            with torch.no_grad():
                weight += ALPHA / RANK * high @ low
    adapter = folder / f"adapter-{seed}"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    targets = sorted({target.rpartition(".")[2] for target in TARGETS})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    # What is said of sampling has no bearing here, and need not be sound.
    merged.generation_config = GenerationConfig()
    merged.save_pretrained(folder / f"merged-{seed}")
    return adapter, folder / f"merged-{seed}"
