"""The hooks inside the compiled graph: where the residual stream is read and edited.

A `Site` is a submodule of a decoder block, called by a forward hook that Dynamo traces with the block. It owns one bank
of edit rows and one of readout rows; the per-token row numbers and the scores are shared by all sites. Contents change
between steps, shapes never do, so nothing is ever traced or captured again.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError
from pilothouse.engine.chains import ChainBank, follow
from pilothouse.engine.ops import called, define, total

SITE_NAME = "pilothouse_site"
"""What a block calls its site."""

READ_TOGETHER = 2048
"""Numbers of a token's streams that wait to be read by one call: it costs more than a small product, and they take
memory meanwhile."""

SUMMED_COLUMNS = 16
"""Columns up to which a graph of CPU code sums products itself, where nothing looks at them before its end: a matrix
product is faster, but the first one of a step finds none of its code in the processor's cache."""

BlockOutput = torch.Tensor | tuple[Any, ...] | list[Any]


@dataclass(frozen=True)
class Stream:
    """Where the stream is in what a block returns: the output itself, or the sum of these members of a tuple.

    Tensors are [n_tokens, d_model], or [1, n_tokens, d_model].
    """

    members: tuple[int, ...] = ()

    def parts(self, output: BlockOutput) -> list[torch.Tensor]:
        """The tensors [n_tokens, d_model] whose sum is the stream; edits go into the first."""
        found: list[Any] = [output[member] for member in self.members] if self.members else [output]
        return [part.flatten(0, -2) for part in found]

    def replaced(self, output: BlockOutput, first: torch.Tensor) -> BlockOutput:
        """`output` with `first` [n_tokens, d_model] in the place of the first part."""
        if isinstance(output, torch.Tensor):
            return first.view_as(output)
        changed = [first.view_as(m) if number == self.members[0] else m for number, m in enumerate(output)]
        return tuple(changed) if isinstance(output, tuple) else changed


class Form(NamedTuple):
    """What sites do in a step: add rows, read, follow chains."""

    adds: bool = True
    reads: bool = True
    chains: bool = True

    def covers(self, needed: "Form") -> bool:
        """Whether this does all that `needed` does."""
        return all(has or not needs for has, needs in zip(self, needed, strict=True))


FULL = Form()
IDLE = Form(adds=False, reads=False, chains=False)


class StepBuffers(nn.Module):
    """What all sites share. Row 0 of every edit bank is zero: a token with row 0 is untouched.

    rows: [max_tokens] int64, the edit row of each token; scores: [max_tokens, readouts] float32; chains: [max_tokens]
    int64, the chain of each token; gains: [max_tokens, chain_steps] float32, 1 where a step of it acts and 0 elsewhere;
    needed: what the step needs of the sites.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    chains: torch.Tensor
    gains: torch.Tensor

    def __init__(self, max_tokens: int, layout: EngineLayout, device: torch.device) -> None:
        super().__init__()
        self.needed = FULL
        self.waiting: list[tuple[list[torch.Tensor], torch.Tensor, bool]] = []
        self.sums: list[tuple[torch.Tensor, bool]] = []
        self.register_buffer("rows", torch.zeros(max_tokens, dtype=torch.int64, device=device), persistent=False)
        scores = torch.zeros(max_tokens, layout.readouts, dtype=torch.float32, device=device)
        self.register_buffer("scores", scores, persistent=False)
        self.register_buffer("chains", torch.zeros(max_tokens, dtype=torch.int64, device=device), persistent=False)
        gains = torch.zeros(max_tokens, layout.chain_steps, dtype=torch.float32, device=device)
        self.register_buffer("gains", gains, persistent=False)


class Site(nn.Module):
    """Reads, then edits, the stream after one block.

    edits: [1 + rows, d_model] in the model's dtype; readouts: [readouts, d_model] float32;
    captured: [max_tokens, d_model] float32, in capture mode only.
    """

    edits: torch.Tensor
    readouts: torch.Tensor
    captured: torch.Tensor

    def __init__(
        self,
        buffers: StepBuffers,
        layout: EngineLayout,
        d_model: int,
        dtype: torch.dtype,
        first: bool,
        stream: Stream = Stream(),
    ):
        super().__init__()
        self.stream = stream
        device = buffers.rows.device
        self.buffers_ = buffers
        self.first = first
        self.reads_waiting = True
        self.form = FULL
        self.capture = layout.capture
        self.register_buffer("edits", torch.zeros(layout.n_rows, d_model, dtype=dtype, device=device), persistent=False)
        weights = torch.zeros(layout.readouts, d_model, dtype=torch.float32, device=device)
        self.register_buffer("readouts", weights, persistent=False)
        kept = buffers.rows.shape[0] if layout.capture else 0
        captured = torch.zeros(kept, d_model, dtype=torch.float32, device=device)
        self.register_buffer("captured", captured, persistent=False)
        self.bank = ChainBank(layout, d_model, dtype, device)

    def read(self, stream: torch.Tensor) -> None:
        """Add this layer's readouts of `stream` [n_tokens, d_model] float32 to the shared scores."""
        n_tokens, scores = stream.shape[0], self.buffers_.scores
        if torch.compiler.is_compiling():
            # The compiler fuses a product and a sum with what comes before; the stream is never written out in float32.
            found = (stream.unsqueeze(1) * self.readouts).sum(dim=-1)
            mine = scores[:n_tokens]
            mine.copy_(found) if self.first else mine.add_(found)
        else:
            read([stream], [1], [self.readouts], scores, self.first)
        if self.capture:
            self.captured[:n_tokens].copy_(stream)

    def edit(self, hidden: torch.Tensor, stream: torch.Tensor | None) -> torch.Tensor:
        """`hidden` [n_tokens, d_model] plus each token's row and what its chain then adds.

        stream: the whole stream, of which `hidden` may be a part, in float32; None where there are no chains.
        """
        n_tokens = hidden.shape[0]
        rows = self.edits[self.buffers_.rows[:n_tokens]]
        if stream is None or not (self.bank.chain_steps and self._does.chains):
            return hidden + rows
        chains, gains = self.buffers_.chains[:n_tokens], self.buffers_.gains[:n_tokens]
        change = self.bank.change(stream + rows.float(), chains, gains, self.buffers_.scores[:n_tokens])
        return hidden + rows + change.to(hidden.dtype)

    def hook(self, module: nn.Module, args: Any, output: BlockOutput) -> BlockOutput:
        """Forward hook of the block, whose output has the stream where `self.stream` says."""
        does = self._does
        if not any(does):
            return output
        parts = self.stream.parts(output)
        if not (does.reads or does.chains):
            return self.stream.replaced(output, self.edit(parts[0], None))
        if called(parts[0]):
            return self.stream.replaced(output, self._called(parts))
        stream = total(parts)
        self.read(stream)
        return self.stream.replaced(output, self.edit(parts[0], stream))

    def _called(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """As `read` and `edit`, by calls."""
        buffers, bank, chains = self.buffers_, self.bank, self.bank.chain_steps and self.form.chains
        if len(self.readouts) <= SUMMED_COLUMNS and not (chains or self.capture):
            self._sum(parts)
            return self.edit(parts[0], None)
        buffers.waiting.append((parts, self.readouts, self.first))
        # Gates look at what has been read at their layer.
        if chains or self.capture or self.reads_waiting:
            of_sites, readouts, firsts = zip(*buffers.waiting, strict=True)
            every = [part for parts in of_sites for part in parts]
            torch.ops.pilothouse.read(every, list(map(len, of_sites)), list(readouts), buffers.scores, firsts[0])
            buffers.waiting.clear()
        if self.capture:
            torch.ops.pilothouse.keep(parts, self.captured)
        if not chains:
            return self.edit(parts[0], None)
        edited: torch.Tensor = torch.ops.pilothouse.edit(
            parts,
            [buffers.rows, buffers.chains, buffers.gains, buffers.scores],
            [self.edits, bank.readers, bank.writers, bank.numbers, bank.columns],
        )
        return edited

    def _sum(self, parts: list[torch.Tensor]) -> None:
        """Add this layer's readouts to those of layers before, which go to the shared scores together."""
        sums = self.buffers_.sums
        found, first = (total(parts).unsqueeze(1) * self.readouts).sum(dim=-1), self.first
        if sums:
            before, first = sums.pop()
            found = before + found
        if self.reads_waiting:
            torch.ops.pilothouse.put(found, self.buffers_.scores, first)
        else:
            sums.append((found, first))

    def in_form(self, form: Form) -> "Site | None":
        """This site as part of a graph that does only what `form` says; None where that is nothing."""
        if not any(form):
            return None
        site = copy.copy(self)
        site.form = form
        return site

    @property
    def _does(self) -> Form:
        """What is compiled in, or captured for steps to come; where neither is, what this step needs."""
        return self.form if torch.compiler.is_compiling() or _capturing(self.edits) else self.buffers_.needed


def read(
    parts: list[torch.Tensor],
    n_parts: list[int],
    readouts: list[torch.Tensor],
    scores: torch.Tensor,
    first: bool,
) -> None:
    """Add the readouts of streams to the first rows of `scores` [max_tokens, columns]; `first`: write them there.

    parts: of all streams, each [n_tokens, d_model]; n_parts, readouts: how many of them each stream has, and what reads
    it, [columns, d_model] float32, as are scores.
    """
    mine = scores[: parts[0].shape[0]]
    begin = 0
    for n, weights in zip(n_parts, readouts, strict=True):
        stream = total(parts[begin : begin + n])
        begin += n
        if first:
            torch.mm(stream, weights.t(), out=mine)
            first = False
        else:
            torch.addmm(mine, stream, weights.t(), out=mine)


def _put(found: torch.Tensor, scores: torch.Tensor, first: bool) -> None:
    mine = scores[: found.shape[0]]
    mine.copy_(found) if first else mine.add_(found)


def _keep(parts: list[torch.Tensor], captured: torch.Tensor) -> None:
    captured[: parts[0].shape[0]].copy_(total(parts))


def _edited(
    parts: list[torch.Tensor],
    rows: torch.Tensor,
    chains: torch.Tensor,
    gains: torch.Tensor,
    scores: torch.Tensor,
    edits: torch.Tensor,
    *bank: torch.Tensor,
) -> torch.Tensor:
    """As `Site.edit`, with all that it looks at."""
    added = edits[rows]
    change = follow(total(parts) + added.float(), chains, gains, scores, *bank)
    return parts[0] + added + change.to(added.dtype)


_compiled_edited: Callable[..., torch.Tensor] = torch.compile(_edited, dynamic=True, fullgraph=True)


def _edit(parts: list[torch.Tensor], of_tokens: list[torch.Tensor], bank: list[torch.Tensor]) -> torch.Tensor:
    """`_edited`, compiled once for all layers. of_tokens: the buffers of a step, whole."""
    n_tokens = parts[0].shape[0]
    mine = [tensor[:n_tokens] for tensor in of_tokens]
    if n_tokens > 1:
        return _compiled_edited(parts, *mine, *bank)
    # Of one token the compiler would make a case of its own, while a request waits.
    parts, mine = ([tensor.repeat_interleave(2, dim=0) for tensor in tensors] for tensors in (parts, mine))
    return _compiled_edited(parts, *mine, *bank)[:1].clone()


define(
    "read(Tensor[] parts, int[] n_parts, Tensor[] readouts, Tensor(a!) scores, bool first) -> ()",
    read,
    lambda *given: None,
)
define("put(Tensor found, Tensor(a!) scores, bool first) -> ()", _put, lambda *given: None)
define("keep(Tensor[] parts, Tensor(a!) captured) -> ()", _keep, lambda *given: None)
define(
    "edit(Tensor[] parts, Tensor[] of_tokens, Tensor[] bank) -> Tensor",
    _edit,
    lambda parts, *rest: torch.empty_like(parts[0]),
)


def _capturing(tensor: torch.Tensor) -> bool:
    """Whether what is done to `tensor` now is kept in a graph of its device, replayed whatever a step needs."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def read_together(sites: Mapping[int, Site]) -> None:
    """Let the streams of several sites wait for one call. Only for sites that are all traced as one graph: what waits
    must not outlast it. The last one never waits."""
    for number, site in enumerate(sites[layer] for layer in sorted(sites, reverse=True)):
        together = max(1, READ_TOGETHER // site.readouts.shape[1])
        site.reads_waiting = number % together == 0


def install_sites(
    blocks: Mapping[int, nn.Module],
    layout: EngineLayout,
    streams: Mapping[int, Stream],
    *,
    d_model: int,
    dtype: torch.dtype,
    max_tokens: int,
    device: torch.device,
    first_stage: bool = True,
) -> tuple[StepBuffers, dict[int, Site]]:
    """Hook the chosen ones of a loaded, not yet compiled model's decoder blocks; StartupError when none is chosen.

    streams: where the stream is in what each of `blocks` returns; first_stage: no pipeline stage comes before this one,
    so its first site begins the sums of the readouts.
    """
    chosen = blocks if layout.sites is None else layout.sites
    if not chosen:
        raise StartupError("no layer has a site: nothing could be steered or read")
    buffers = StepBuffers(max_tokens, layout, device)
    sites: dict[int, Site] = {}
    for layer in sorted(set(chosen) & set(blocks)):
        first = first_stage and not sites
        site = Site(buffers, layout, d_model, dtype, first=first, stream=streams[layer])
        blocks[layer].add_module(SITE_NAME, site)
        blocks[layer].register_forward_hook(site.hook)
        sites[layer] = site
    return buffers, sites
