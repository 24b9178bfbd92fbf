"""The loaded model run slowly and obviously: what every steered and read request must come to.

One sequence at a time, eager, all its positions at once: no batch, no cache, no compiled graph, no slots, rows or
columns. Attention is spelled out, edits and readouts are loops over positions. It shares with serving the weights and
the modules between the sites, nothing else, so the start-up self-test can hold the serving path against it on any model
that is loaded; tests hold it against Hugging Face.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pilothouse.core.directions import rows_from_payload
from pilothouse.core.edits import Edit, Operation
from pilothouse.core.errors import PilothouseError
from pilothouse.core.messages import Payload
from pilothouse.core.plans import END, Plan, edit_spans
from pilothouse.core.sites import Float32
from pilothouse.engine.adapters import without_adapters
from pilothouse.engine.relay import pipeline_stage

Float64 = npt.NDArray[np.float64]


class NoReferenceError(PilothouseError):
    """The model has a token mixer that this module cannot spell out."""


class ReferenceEdit(msgspec.Struct, frozen=True, array_like=True):
    """An `Edit` with its content, at positions [start, stop); gate: the number of its readout, above, level."""

    op: Operation
    direction: Payload
    coefficients: dict[int, float]
    start: int
    stop: int
    bounds: dict[int, tuple[float, float]] = {}
    reader: Payload = {}
    bias: float = 0.0
    threshold: float = 0.0
    preserve_norm: bool = False
    gate: tuple[int, bool, float] | None = None

    @classmethod
    def of(cls, edit: Edit, span: tuple[int, int], readouts: Sequence[bytes]) -> "ReferenceEdit":
        """`edit` of a plan with these digests of readouts; ValueError for a latch, whose state no one pass can tell."""
        gate, reader = edit.gate, edit.reader
        if gate is not None and gate.latched:
            raise ValueError("latched gates are not spelled out here")
        return cls(
            edit.op,
            edit.direction.payload,
            dict(edit.coefficients),
            span[0],
            min(span[1], END),
            dict(edit.bounds),
            {} if reader is None else reader.direction.payload,
            0.0 if reader is None else reader.bias,
            0.0 if reader is None else reader.threshold,
            edit.preserve_norm,
            None if gate is None else (readouts.index(gate.readout.digest), gate.above, gate.level),
        )

    def applied(self, layer: int, state: torch.Tensor) -> torch.Tensor:
        """One position's stream [d_model] after the edit, by the definition of its operation."""
        row, value = _row(self.direction, layer, state), self.coefficients[layer]
        unit = row / row.norm()
        component = float(state @ unit)
        match self.op:
            case "add":
                after = state + value * row
            case "ablate":
                after = state - value * component * unit
            case "set":
                after = state + (value - component) * unit
            case "cap":
                low, high = self.bounds[layer]
                after = state + value * (min(max(component, low), high) - component) * unit
            case "clamp" | "min_clamp":
                seen = float(state @ _row(self.reader, layer, state)) + self.bias
                active = seen if seen > self.threshold else 0.0
                wanted = value if self.op == "clamp" else max(value, active)
                after = state + (wanted - active) * row
        return after * (state.norm() / after.norm()) if self.preserve_norm else after


class ReferenceRequest(msgspec.Struct, frozen=True, array_like=True):
    """One sequence to run, as it travels to the workers; readouts: directions by layer."""

    token_ids: list[int]
    edits: tuple[ReferenceEdit, ...] = ()
    readouts: tuple[Payload, ...] = ()

    @classmethod
    def of(cls, prompt: Sequence[int], generated: Sequence[int], plan: Plan) -> "ReferenceRequest":
        """The sequence `prompt` + `generated` under `plan`."""
        spans = edit_spans(plan.edits, len(prompt))
        digests = [readout.direction.digest for readout in plan.readouts]
        edits = tuple(ReferenceEdit.of(e, span, digests) for e, span in zip(plan.edits, spans, strict=True))
        readouts = tuple(readout.direction.payload for readout in plan.readouts)
        return cls([*prompt, *generated], edits, readouts)


class ReferenceAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What the model says of one sequence. Tables are float32 bytes; norms: the root mean square length of the stream
    by layer, before that layer's own edits; typical: its median length behind the first position, whose length is that
    of an attention sink in many models."""

    logprobs: bytes
    readouts: bytes
    norms: dict[int, float]
    typical: dict[int, float]

    def table(self, n_tokens: int) -> Float32:
        """Log-probabilities [n_tokens, vocabulary] of what follows each position."""
        return np.frombuffer(self.logprobs, dtype="<f4").reshape(n_tokens, -1)

    def scores(self, n_tokens: int) -> Float32:
        """Readouts [n_tokens, n_readouts]."""
        return np.frombuffer(self.readouts, dtype="<f4").reshape(n_tokens, -1)


@dataclass
class _Watch:
    """What the hooks of one run see and change."""

    request: ReferenceRequest
    readouts: Float64
    norms: dict[int, float]
    typical: dict[int, float]

    @classmethod
    def resumed(cls, request: ReferenceRequest, notes: bytes | None) -> "_Watch":
        """At the first layer, or where the pipeline stage before left off."""
        shape = len(request.token_ids), len(request.readouts)
        if notes is None:
            return cls(request, np.zeros(shape), {}, {})
        read, norms, typical = msgspec.msgpack.decode(notes, type=tuple[bytes, dict[int, float], dict[int, float]])
        return cls(request, np.frombuffer(read, dtype=np.float64).reshape(shape).copy(), norms, typical)

    def notes(self) -> bytes:
        """What the next pipeline stage needs."""
        return msgspec.msgpack.encode((self.readouts.tobytes(), self.norms, self.typical))

    def visit(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Read `stream` [n_tokens, d_model] float64 after block `layer`; what the edits add to it, same shape."""
        self.norms[layer] = float(stream.pow(2).sum(dim=-1).mean().sqrt())
        self.typical[layer] = float(stream[1:].norm(dim=-1).median()) if len(stream) > 1 else self.norms[layer]
        for k, payload in enumerate(self.request.readouts):
            if layer in payload:
                weights = _row(payload, layer, stream)
                for position, state in enumerate(stream):
                    self.readouts[position, k] += float(state @ weights)
        after = stream.clone()
        for edit in self.request.edits:
            if layer in edit.coefficients:
                for position in range(edit.start, min(edit.stop, len(stream))):
                    if self._open(edit, position):
                        after[position] = edit.applied(layer, after[position])
        return after - stream

    def _open(self, edit: ReferenceEdit, position: int) -> bool:
        if edit.gate is None:
            return True
        number, above, level = edit.gate
        seen = float(self.readouts[position, number])
        return seen > level if above else seen < level


def answer(runner: Any, request: bytes) -> bytes | str | None:
    """`run` for an encoded request: the encoded answer, or in a string why there is none."""
    try:
        found = run(runner, msgspec.msgpack.decode(request, type=ReferenceRequest))
    except NoReferenceError as error:
        return str(error)
    return None if found is None else msgspec.msgpack.encode(found)


def decode(replies: Sequence[bytes | str | None]) -> ReferenceAnswer:
    """The one answer among the replies of all ranks; NoReferenceError with the reason when there is none."""
    for reply in replies:
        if isinstance(reply, str):
            raise NoReferenceError(reply)
        if reply is not None:
            return msgspec.msgpack.decode(reply, type=ReferenceAnswer)
    raise NoReferenceError("no rank holds the logits")


@torch.inference_mode()
def run(runner: Any, request: ReferenceRequest) -> ReferenceAnswer | None:
    """One sequence through the model of `runner` (either generation), whose decoder blocks and streams are placed.

    None on ranks that hold no logits: of tensor parallelism, and earlier stages of a pipeline, which hand on what they
    come to. NoReferenceError when the model's attention is none that is spelled out here.
    """
    n_tokens = len(request.token_ids)
    with pipeline_stage(NoReferenceError, runner.device) as stage:
        watch = _Watch.resumed(request, stage.notes)
        without_adapters(runner, n_tokens)
        with _forward_context(runner, n_tokens), _spelled_out(runner.model), _watched(runner, watch):
            hidden = runner.model(**_inputs(runner, request.token_ids), intermediate_tensors=stage.received)
            if stage.hand_on(hidden, watch.notes()):
                return None
            logits = runner.model.compute_logits(hidden)
    if logits is None:
        return None
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return ReferenceAnswer(_bytes(logprobs.cpu().numpy()), _bytes(watch.readouts), watch.norms, watch.typical)


def _inputs(runner: Any, token_ids: Sequence[int]) -> dict[str, torch.Tensor]:
    positions = torch.arange(len(token_ids), device=runner.device)
    if runner.model_config.uses_mrope:
        positions = positions.expand(3, len(token_ids))
    return {"input_ids": torch.tensor(token_ids, device=runner.device), "positions": positions}


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Softmax attention of each position over itself and those before it.

    query: [n_heads, n_tokens, head_size]; key, value: [n_kv_heads, n_tokens, ...], each shared by a group of heads;
    window: how many positions, itself included, are seen; sinks: one more logit for each head that takes weight from
    the others; chunk: positions see only those of the same stretch of that length. Returns [n_heads, n_tokens,
    head_size of value] float64.
    """
    groups = query.shape[0] // key.shape[0]
    key, value = (tensor.double().repeat_interleave(groups, dim=0) for tensor in (key, value))
    weights = scale * query.double() @ key.transpose(1, 2)
    if soft_cap:
        weights = soft_cap * torch.tanh(weights / soft_cap)
    positions = torch.arange(query.shape[1], device=query.device)
    distance = positions[:, None] - positions[None, :]
    if alibi_slopes is not None:
        weights = weights - alibi_slopes.double().to(query.device)[:, None, None] * distance
    hidden = distance < 0
    if window is not None:
        hidden = hidden | (distance >= window)
    if chunk is not None:
        hidden = hidden | (positions[:, None] // chunk != positions[None, :] // chunk)
    weights = weights.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand(-1, query.shape[1], 1)
        return torch.softmax(torch.cat([weights, sink], dim=-1), dim=-1)[..., :-1] @ value
    return torch.softmax(weights, dim=-1) @ value


def _attention_of(layer: Any) -> Callable[..., torch.Tensor]:
    """A `forward` for one of vLLM's attention layers that needs no cache."""
    implementation = layer.impl

    def forward(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output_shape: Any = None,
        output_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        n_tokens = query.shape[0]
        slopes = implementation.alibi_slopes
        mixed = causal_attention(
            query.reshape(n_tokens, layer.num_heads, -1).transpose(0, 1),
            key.reshape(n_tokens, layer.num_kv_heads, -1).transpose(0, 1),
            value.reshape(n_tokens, layer.num_kv_heads, -1).transpose(0, 1),
            implementation.scale,
            layer.sliding_window,
            implementation.logits_soft_cap,
            None if slopes is None else torch.as_tensor(slopes),
            getattr(implementation, "sinks", None),
            getattr(layer, "attention_chunk_size", None),
        )
        return mixed.transpose(0, 1).reshape(n_tokens, -1).to(output_dtype or query.dtype)

    return forward


@contextlib.contextmanager
def _spelled_out(model: nn.Module) -> Iterator[None]:
    """Every attention layer of `model` computes what it means, without its kernels and its cache."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.attention.chunked_local_attention import ChunkedLocalAttention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    mixers = [module for module in model.modules() if isinstance(module, AttentionLayerBase)]
    for mixer in mixers:
        if type(mixer) not in (Attention, ChunkedLocalAttention) or mixer.kv_sharing_target_layer_name is not None:
            raise NoReferenceError(f"{type(mixer).__name__} of {type(model).__name__} is not plain causal attention")
    for mixer in mixers:
        mixer.forward = _attention_of(mixer)
    try:
        yield
    finally:
        for mixer in mixers:
            del mixer.forward


@contextlib.contextmanager
def _watched(runner: Any, watch: _Watch) -> Iterator[None]:
    """`watch` in the place of the serving sites."""
    blocks, streams = runner.pilothouse_blocks, runner.pilothouse_streams
    serving = {layer: block._forward_hooks for layer, block in blocks.items()}

    def hook_of(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            parts = streams[layer].parts(output)
            added = watch.visit(layer, torch.stack([part.double() for part in parts]).sum(dim=0))
            return streams[layer].replaced(output, (parts[0].double() + added).to(parts[0].dtype))

        return hook

    try:
        for layer, block in blocks.items():
            block._forward_hooks = OrderedDict()
            block.register_forward_hook(hook_of(layer))
        yield
    finally:
        for layer, block in blocks.items():
            block._forward_hooks = serving[layer]


@contextlib.contextmanager
def _forward_context(runner: Any, n_tokens: int) -> Iterator[None]:
    from vllm.forward_context import set_forward_context

    with set_forward_context(None, runner.vllm_config, num_tokens=n_tokens, skip_compiled=True):
        yield


def _row(payload: Payload, layer: int, stream: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rows_from_payload(payload)[layer].astype(np.float64)).to(stream.device)


def _bytes(table: npt.NDArray[np.floating[Any]]) -> bytes:
    return np.ascontiguousarray(table, dtype="<f4").tobytes()
