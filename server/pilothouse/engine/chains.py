"""Edits that depend on the stream, one after another, inside the compiled graph.

A chain is a plan's sequence of such edits; its steps are the formula of `core.edits`, each with its numbers by layer.
Chain 0 changes nothing, exactly: every number of it is zero. As everywhere in the graph, contents change between steps
of the engine and shapes never do.
"""

import torch
from torch import nn

from pilothouse.core.config import EngineLayout
from pilothouse.core.edits import Rule

ALPHA, BETA, LOW, HIGH, BIAS, THRESHOLD, PRESERVES, SIGN, LEVEL = range(9)
N_NUMBERS = 9
OPEN = -1.0
"""A gate's level that is always passed where its sign is 0."""


class ChainBank(nn.Module):
    """The chains at one layer.

    readers: [n_chains, chain_steps, d_model] float32, rows r times `reads`; writers: the same shape in the model's
    dtype, rows v times `writes`; numbers: [n_chains, chain_steps, N_NUMBERS] float32; columns: [n_chains, chain_steps]
    int64, the readout that each step's gate looks at.
    """

    readers: torch.Tensor
    writers: torch.Tensor
    numbers: torch.Tensor
    columns: torch.Tensor

    def __init__(self, layout: EngineLayout, d_model: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.chain_steps = layout.chain_steps
        shape = (layout.n_chains, layout.chain_steps)
        for name, tensor in (
            ("readers", torch.zeros(*shape, d_model, dtype=torch.float32, device=device)),
            ("writers", torch.zeros(*shape, d_model, dtype=dtype, device=device)),
            ("numbers", torch.zeros(*shape, N_NUMBERS, dtype=torch.float32, device=device)),
            ("columns", torch.zeros(shape, dtype=torch.int64, device=device)),
        ):
            self.register_buffer(name, tensor, persistent=False)
        self.numbers[..., LEVEL] = OPEN

    def clear(self, chain: int) -> None:
        """Make `chain` change nothing."""
        for bank in (self.readers, self.writers, self.numbers, self.columns):
            bank[chain].zero_()
        self.numbers[chain, :, LEVEL] = OPEN

    def load(
        self,
        chain: int,
        step: int,
        rule: Rule,
        reader: torch.Tensor,
        writer: torch.Tensor,
        *,
        preserve_norm: bool,
        gate: tuple[int, bool, float] | None,
    ) -> None:
        """Fill one step of `chain`: rows r and v [d_model] float32, and its gate as (column, above, level)."""
        self.readers[chain, step].copy_(rule.reads * reader)
        self.writers[chain, step].copy_(rule.writes * writer)
        column, above, level = gate or (0, True, OPEN)
        sign = (1.0 if above else -1.0) if gate else 0.0
        numbers = [rule.alpha, rule.beta, rule.low, rule.high, rule.bias, rule.threshold, float(preserve_norm)]
        self.numbers[chain, step].copy_(torch.tensor([*numbers, sign, sign * level if gate else OPEN]))
        self.columns[chain, step] = column

    def change(
        self, stream: torch.Tensor, chains: torch.Tensor, gains: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        """What the chains add to `stream` [n_tokens, d_model] float32, the same shape.

        chains: [n_tokens] int64; gains: [n_tokens, chain_steps] float32, 0 where a step does not act; scores:
        [n_tokens, readouts] float32 as read so far, this layer included.
        """
        return follow(stream, chains, gains, scores, self.readers, self.writers, self.numbers, self.columns)


def follow(
    stream: torch.Tensor,
    chains: torch.Tensor,
    gains: torch.Tensor,
    scores: torch.Tensor,
    readers: torch.Tensor,
    writers: torch.Tensor,
    numbers: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """`ChainBank.change` with the bank's tensors."""
    mine = numbers[chains]
    seen = torch.gather(scores, 1, columns[chains])
    gains = gains * (mine[..., SIGN] * seen > mine[..., LEVEL])
    moved = stream
    for k in range(readers.shape[1]):
        alpha, beta, low, high, bias, threshold, preserves = mine[:, k, :SIGN].unbind(dim=-1)
        seen_by = (moved * readers[chains, k]).sum(dim=-1) + bias
        active = torch.where(seen_by > threshold, seen_by, 0.0)
        amount = (alpha + beta * (torch.clamp(active, low, high) - active)) * gains[:, k]
        after = moved + amount.unsqueeze(-1) * writers[chains, k]
        lengths = moved.square().sum(dim=-1) / after.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.where(preserves * gains[:, k] > 0, lengths.sqrt(), 1.0)
        moved = after * scale.unsqueeze(-1)
    return moved - stream
