"""Where sites go: the decoder blocks of a loaded model, and proof that their outputs are what a site takes them for.

A block returns the stream itself, or a pair (hidden, residual) whose **sum** is the stream. Some architectures return a
pair whose second member nobody reads again; summing it would read and edit something that is not there. So the pair is
tried out: a block given (hidden + x, residual - x) must answer as it does to (hidden, residual).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pilothouse.core.errors import StartupError

N_TOKENS = 4
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference that rounding may cause; a dead residual differs by about 1."""


def find_blocks(model: nn.Module, n_layers: int) -> dict[int, nn.Module]:
    """The decoder blocks of `model` by layer number.

    They are the one ModuleList of n_layers members whose members hold an attention or state-space module. Layers that
    live on another pipeline stage are placeholders and left out. StartupError when there is no such list, or several.
    """
    candidates = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and any(map(_token_mixers, module))
    ]
    if len(candidates) != 1:
        found = "no list" if not candidates else f"{len(candidates)} lists"
        raise StartupError(f"cannot place sites in {type(model).__name__}: {found} of {n_layers} decoder blocks found")
    return {layer: block for layer, block in enumerate(candidates[0]) if type(block).__name__ != "PPMissingLayer"}


def _token_mixers(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that let tokens see one another."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return [module for module in block.modules() if isinstance(module, AttentionLayerBase)]


def require_live_stream(block: nn.Module, vllm_config: Any, d_model: int, dtype: torch.dtype, device: Any) -> None:
    """StartupError unless what `block` returns is the stream, or a pair whose sum is."""
    name = type(block).__name__
    takes_residual = "residual" in inspect.signature(block.forward).parameters
    generator = torch.Generator(device="cpu").manual_seed(0)
    hidden, residual, shift = (torch.randn(N_TOKENS, d_model, generator=generator).to(device, dtype) for _ in range(3))
    with torch.inference_mode(), _attention_passes_queries(block), _forward_context(vllm_config):
        output = _call(block, hidden, residual if takes_residual else None)
        if isinstance(output, torch.Tensor):
            if takes_residual:
                raise StartupError(f"cannot place sites: {name} takes a residual but returns none")
            _require_shape(name, output, hidden)
            return
        if not (isinstance(output, tuple) and len(output) == 2 and all(isinstance(o, torch.Tensor) for o in output)):
            raise StartupError(f"cannot place sites: {name} returns neither the stream nor (hidden, residual)")
        if not takes_residual:
            raise StartupError(f"cannot place sites: the residual that {name} returns is read by nobody")
        _require_shape(name, output[0], hidden)
        moved = _call(block, hidden + shift, residual - shift)
    expected, found = (sum(o.float() for o in pair) for pair in (output, moved))
    difference = (expected - found).abs().max() / expected.abs().max()
    if not difference <= TOLERANCE[dtype]:
        raise StartupError(f"cannot place sites: the sum of what {name} takes is not the stream")


def _require_shape(name: str, output: torch.Tensor, stream: torch.Tensor) -> None:
    if output.shape != stream.shape:
        raise StartupError(f"cannot place sites: {name} returns {list(output.shape)} for {list(stream.shape)}")


def _call(block: nn.Module, hidden: torch.Tensor, residual: torch.Tensor | None) -> Any:
    """`block` on one stream, its arguments filled in by the names that vLLM's models use."""
    positions = torch.arange(len(hidden), device=hidden.device)
    known = {"positions": positions, "position_ids": positions, "hidden_states": hidden, "residual": residual}
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(block.forward).parameters.values():
        if parameter.name in known:
            arguments[parameter.name] = known[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            raise StartupError(f"cannot place sites: {type(block).__name__} takes {parameter.name!r}, which is unknown")
    # Blocks write into their inputs: the residual addition of the norms is in place.
    return block(**{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()})


@contextmanager
def _attention_passes_queries(block: nn.Module) -> Iterator[None]:
    """Attention needs a cache that does not exist yet, and what it computes does not matter here."""
    mixers = _token_mixers(block)
    for mixer in mixers:
        mixer.forward = lambda query, *args, **kwargs: query.clone()
    try:
        yield
    finally:
        for mixer in mixers:
            del mixer.forward


@contextmanager
def _forward_context(vllm_config: Any) -> Iterator[None]:
    from vllm.forward_context import set_forward_context

    with set_forward_context(None, vllm_config, num_tokens=N_TOKENS):
        yield
