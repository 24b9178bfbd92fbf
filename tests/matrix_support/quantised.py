"""Tiny random checkpoints in quantised formats, written tensor by tensor, and the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine_support.tiny import SHAPE
from safetensors.torch import save_file

GROUP = 32
PER_WORD = 8
"""Numbers of four bits in a word of 32."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Tensor = torch.Tensor
Quantised = tuple[dict[str, Tensor], Tensor]
"""What the file has in the place of a weight [out, in], by suffix, and the weight in float32 that it stands for."""


@dataclass(frozen=True)
class Format:
    """quantise: of one linear layer's weight, None where vLLM does it at load; config: `quantization_config`;
    options: of the engine; stands_for: the weight that vLLM makes of one at load; lacking: what vLLM
    says where it does not serve the format, nothing where it must."""

    quantise: Callable[[Tensor], Quantised] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    stands_for: Callable[[Tensor], Tensor] | None = None
    lacking: str = "(?!)"


def per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with a scale for each output, [out, in] and [out, 1]."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(weight / scale).clamp(-127, 127).to(torch.int8), scale


def w8a8(weight: Tensor) -> Quantised:
    numbers, scale = per_channel(weight)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale


def int8_at_load(weight: Tensor) -> Tensor:
    numbers, scale = per_channel(weight)
    return numbers.float() * scale


def fp8_at_load(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def grouped(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four bits in groups along the input: numbers [in, out], zero points and scales [in / GROUP, out]."""
    rows = weight.t().reshape(-1, GROUP, weight.shape[0])
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    scale = ((high - low) / 15).to(torch.bfloat16).float()
    zero = torch.round(-low / scale).clamp(0, 15)
    numbers = torch.round(rows / scale[:, None] + zero[:, None]).clamp(0, 15)
    return numbers.reshape(weight.t().shape).to(torch.int64), zero.to(torch.int64), scale


def pack(numbers: Tensor, dim: int, order: tuple[int, ...] = tuple(range(PER_WORD))) -> Tensor:
    """Eight of four bits in a word along `dim`; the word's nibble k is of number order[k]."""
    moved = numbers.movedim(dim, -1).reshape(*numbers.movedim(dim, -1).shape[:-1], -1, PER_WORD)
    words = sum(moved[..., place] << (4 * k) for k, place in enumerate(order))
    assert isinstance(words, torch.Tensor)
    words = torch.where(words >= 2**31, words - 2**32, words)
    return words.to(torch.int32).movedim(-1, dim).contiguous()


def expanded(values: Tensor) -> Tensor:
    return values.repeat_interleave(GROUP, dim=0)


def awq(weight: Tensor) -> Quantised:
    numbers, zero, scale = grouped(weight)
    tensors = {
        "qweight": pack(numbers, 1, AWQ_ORDER),
        "qzeros": pack(zero, 1, AWQ_ORDER),
        "scales": scale.to(torch.bfloat16),
    }
    return tensors, ((numbers - expanded(zero)) * expanded(scale)).t().contiguous()


def gptq(weight: Tensor) -> Quantised:
    rows = weight.t().reshape(-1, GROUP, weight.shape[0])
    scale = (rows.abs().amax(dim=1) / 7).to(torch.bfloat16).float()
    numbers = (torch.round(rows / scale[:, None]).clamp(-8, 7) + 8).reshape(weight.t().shape).to(torch.int64)
    tensors = {
        "qweight": pack(numbers, 0),
        # The format keeps the zero point less one.
        "qzeros": pack(torch.full(scale.shape, 7, dtype=torch.int64), 1),
        "scales": scale.to(torch.bfloat16),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32),
    }
    return tensors, ((numbers - 8) * expanded(scale)).t().contiguous()


ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
FORMATS: dict[str, Format] = {
    "bfloat16": Format(),
    "int8 weights and activations (compressed-tensors W8A8)": Format(
        w8a8,
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": ACTIVATIONS}},
        },
    ),
    "int4 weights (GPTQ)": Format(
        gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    ),
    "int4 weights (AWQ)": Format(
        awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    ),
    "int8 weights (at load)": Format(options={"quantization": "int8_per_channel_weight_only"}, stands_for=int8_at_load),
    "fp8 weights (at load, per channel)": Format(options={"quantization": "fp8_per_channel"}, stands_for=fp8_at_load),
    "fp8 weights (at load, per tensor)": Format(
        options={"quantization": "fp8_per_tensor"}, lacking="static_scaled_fp8_quant"
    ),
    "fp8 weights (at load, per block)": Format(options={"quantization": "fp8_per_block"}, lacking="requires AMX"),
    "GGUF": Format(options={"quantization": "gguf"}, lacking="Unknown quantization method: gguf"),
}


def save_both(format: Format, folder: Path) -> tuple[Path, Path]:
    """The folders of the checkpoint in `format` and of the same model with the weights that it stands for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).to(torch.float32)
    quantised, plain = folder / "quantised", folder / "plain"
    model.to(torch.bfloat16).save_pretrained(quantised)
    model.to(torch.float32)
    tensors: dict[str, Tensor] = {}
    for name, weight in dict(model.state_dict()).items():
        if name.endswith("_proj.weight"):
            if format.quantise is not None:
                found, stands_for = format.quantise(weight)
                tensors |= {name.removesuffix("weight") + suffix: tensor for suffix, tensor in found.items()}
                weight.copy_(stands_for)
                continue
            if format.stands_for is not None:
                tensors[name] = weight.to(torch.bfloat16).clone()
                weight.copy_(format.stands_for(weight))
                continue
        tensors[name] = weight.to(torch.bfloat16).clone()
    save_file(tensors, quantised / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantised / "config.json").read_text(encoding="utf-8"))
    config |= {"dtype": "bfloat16"} | ({"quantization_config": format.config} if format.config else {})
    (quantised / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model.save_pretrained(plain)
    return quantised, plain
