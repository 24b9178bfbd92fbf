"""The hooks inside the compiled graph: where the residual stream is read and edited.

A `Site` is a submodule of a decoder block, called by a forward hook that Dynamo traces with the block. It owns one bank
of edit rows and one of readout rows; the per-token row numbers and the scores are shared by all sites. Contents change
between steps, shapes never do, so nothing is ever traced or captured again.
"""

from typing import Any

import torch
from torch import nn

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError

BlockOutput = torch.Tensor | tuple[torch.Tensor, ...]


class StepBuffers(nn.Module):
    """What all sites share. Row 0 of every edit bank is zero: a token with row 0 is untouched.

    rows: [max_tokens] int64, the edit row of each token; scores: [max_tokens, readouts] float32.
    """

    rows: torch.Tensor
    scores: torch.Tensor

    def __init__(self, max_tokens: int, layout: EngineLayout, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(max_tokens, dtype=torch.int64, device=device), persistent=False)
        scores = torch.zeros(max_tokens, layout.readouts, dtype=torch.float32, device=device)
        self.register_buffer("scores", scores, persistent=False)


class Site(nn.Module):
    """Reads, then edits, the stream after one block.

    edits: [1 + slots * rows_per_slot, d_model] in the model's dtype; readouts: [readouts, d_model] float32;
    captured: [max_tokens, d_model] float32, in capture mode only.
    """

    edits: torch.Tensor
    readouts: torch.Tensor
    captured: torch.Tensor

    def __init__(self, buffers: StepBuffers, layout: EngineLayout, d_model: int, dtype: torch.dtype, first: bool):
        super().__init__()
        device = buffers.rows.device
        self.buffers_ = buffers
        self.first = first
        self.capture = layout.capture
        self.register_buffer("edits", torch.zeros(layout.n_rows, d_model, dtype=dtype, device=device), persistent=False)
        weights = torch.zeros(layout.readouts, d_model, dtype=torch.float32, device=device)
        self.register_buffer("readouts", weights, persistent=False)
        kept = buffers.rows.shape[0] if layout.capture else 0
        captured = torch.zeros(kept, d_model, dtype=torch.float32, device=device)
        self.register_buffer("captured", captured, persistent=False)

    def read(self, stream: torch.Tensor) -> None:
        """Add this layer's readouts of `stream` [n_tokens, d_model] float32 to the shared scores."""
        n_tokens = stream.shape[0]
        scores = torch.nn.functional.linear(stream, self.readouts)
        if self.first:
            self.buffers_.scores[:n_tokens].copy_(scores)
        else:
            self.buffers_.scores[:n_tokens].add_(scores)
        if self.capture:
            self.captured[:n_tokens].copy_(stream)

    def edit(self, stream: torch.Tensor) -> torch.Tensor:
        """`stream` [n_tokens, d_model] plus each token's row."""
        return stream + self.edits[self.buffers_.rows[: stream.shape[0]]]

    def hook(self, module: nn.Module, args: Any, output: BlockOutput) -> BlockOutput:
        """Forward hook of a block that returns (hidden, residual) or the stream itself."""
        if isinstance(output, tuple):
            hidden, residual = output
            self.read(hidden.float() + residual.float())
            return self.edit(hidden), residual
        self.read(output.float())
        return self.edit(output)


def find_blocks(model: nn.Module, n_layers: int) -> dict[int, nn.Module]:
    """The decoder blocks of `model` by layer number.

    They are the one ModuleList of n_layers members whose members hold an attention or state-space module. Layers that
    live on another pipeline stage are placeholders and left out. StartupError when there is no such list, or several.
    """
    candidates = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and any(map(_mixes_tokens, module))
    ]
    if len(candidates) != 1:
        found = "no list" if not candidates else f"{len(candidates)} lists"
        raise StartupError(f"cannot place sites in {type(model).__name__}: {found} of {n_layers} decoder blocks found")
    return {layer: block for layer, block in enumerate(candidates[0]) if type(block).__name__ != "PPMissingLayer"}


def _mixes_tokens(block: nn.Module) -> bool:
    """Whether a block holds something that lets tokens see one another."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return any(isinstance(module, AttentionLayerBase) for module in block.modules())


def install_sites(
    model: nn.Module,
    layout: EngineLayout,
    *,
    n_layers: int,
    d_model: int,
    dtype: torch.dtype,
    max_tokens: int,
    device: torch.device,
) -> tuple[StepBuffers, dict[int, Site]]:
    """Hook the chosen layers of a loaded, not yet compiled model; StartupError when one cannot be placed."""
    blocks = find_blocks(model, n_layers)
    chosen = range(n_layers) if layout.sites is None else layout.sites
    if missing := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise StartupError(f"sites {missing} do not exist: the model has layers 0 to {n_layers - 1}")
    buffers = StepBuffers(max_tokens, layout, device)
    sites: dict[int, Site] = {}
    for layer in sorted(set(chosen) & set(blocks)):
        site = Site(buffers, layout, d_model, dtype, first=not sites)
        blocks[layer].add_module("pilothouse_site", site)
        blocks[layer].register_forward_hook(site.hook)
        sites[layer] = site
    if not sites:
        raise StartupError("no layer has a site: nothing could be steered or read")
    return buffers, sites
