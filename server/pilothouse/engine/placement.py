"""Where sites go: the decoder blocks of a loaded model, and proof of where the stream is in what they return.

Architectures differ in what a block hands to the next one: the stream itself, a pair (hidden, residual) whose **sum**
is the stream, a pair whose second member nobody reads again, a second member that is None, a batch dimension of one in
front. No list of names says which, so every block is tried out before the first hook: the model runs once on random
tokens, what each block returned is kept, and then each output is changed while the next block (behind the last one: the
rest of the model) answers. A member without effect is dead. Where two have one, (hidden + x, residual - x) must be
answered like (hidden, residual): only then is their sum all that is read on, and what is added to one is added to the
stream. Anything else is refused at start, with the block's name and the reason.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pilothouse.core.errors import StartupError
from pilothouse.engine.sites import Stream

N_TOKENS = 8
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative difference that rounding may cause in what half of the tokens give; a member that is read makes about 1."""


def find_blocks(model: Any, n_layers: int) -> dict[int, nn.Module]:
    """The decoder blocks of `model` by layer number.

    They are the one ModuleList of n_layers members whose members hold an attention or state-space module, in the
    language model where there are others too. Layers that live on another pipeline stage are placeholders and left out.
    StartupError when there is no such list, or several.
    """
    candidates = _lists(model, n_layers)
    if len(candidates) > 1 and hasattr(model, "get_language_model"):
        candidates = _lists(model.get_language_model(), n_layers)
    if len(candidates) != 1:
        found = "no list" if not candidates else f"{len(candidates)} lists"
        raise StartupError(f"cannot place sites in {type(model).__name__}: {found} of {n_layers} decoder blocks found")
    return {layer: block for layer, block in enumerate(candidates[0]) if type(block).__name__ != "PPMissingLayer"}


def _lists(model: nn.Module, n_layers: int) -> list[list[nn.Module]]:
    """Every such list once, also where another one has the same members."""
    found = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and any(map(_token_mixers, module))
    ]
    return [blocks for number, blocks in enumerate(found) if blocks not in found[:number]]


def _token_mixers(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that let tokens see one another."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return [module for module in block.modules() if isinstance(module, AttentionLayerBase)]


@torch.inference_mode()
def find_streams(
    model: nn.Module,
    blocks: Mapping[int, nn.Module],
    vllm_config: Any,
    *,
    d_model: int,
    dtype: torch.dtype,
    device: Any,
) -> dict[int, Stream]:
    """Where the stream is in what each of `blocks` returns; StartupError when that cannot be said.

    model: loaded, without hooks and without a cache; every rank must call this at the same time.
    """
    for block in blocks.values():
        _require_unscaled(block, dtype)
    with ExitStack() as stack:
        stack.enter_context(_EmptyIsZero())
        stack.enter_context(_forward_context(vllm_config))
        try:
            trial = Trial(model, blocks, _inputs(model, vllm_config, dtype, device), TOLERANCE[dtype])
            return {layer: stream_after(layer, trial, d_model) for layer in blocks}
        except StartupError:
            raise
        except Exception as error:
            what = f"a trial run of {type(model).__name__} failed: {type(error).__name__}: {error}"
            raise StartupError(f"cannot place sites: {what}") from error


class Trial:
    """A model with what each of its blocks returned for `inputs`, and the means to run one block on something else."""

    def __init__(
        self, model: nn.Module, blocks: Mapping[int, nn.Module], inputs: Mapping[str, Any], tolerance: float
    ) -> None:
        self.tolerance = tolerance
        self.n_tokens = N_TOKENS
        self.blocks = dict(blocks)
        self.outputs: dict[int, Any] = {}
        self._model, self._inputs = model, inputs
        self._calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._record()
        self._usual: dict[int, torch.Tensor] = {}

    def name(self, layer: int) -> str:
        return type(self.blocks[layer]).__name__

    def _record(self) -> None:
        """Run the model, and keep each block's inputs and outputs. Blocks write into their inputs, hence the copies."""
        counts = dict.fromkeys(self.blocks, 0)

        def before(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                self._calls[layer] = _copied(args), _copied(kwargs)

            return hook

        def after(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                counts[layer] += 1
                self.outputs[layer] = _copied(output)

            return hook

        with ExitStack() as stack:
            for layer, block in self.blocks.items():
                stack.callback(block.register_forward_pre_hook(before(layer), with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(after(layer)).remove)
            self._run()
        for layer, count in counts.items():
            if count != 1:
                raise StartupError(
                    f"cannot place sites: {self.name(layer)} {layer} runs {count} times in one pass of the model"
                )

    def change(self, layer: int, output: Any) -> float:
        """How much else is given behind block `layer` when it returns `output`: the median over tokens of the relative
        difference."""
        if layer not in self._usual:
            self._usual[layer] = self._behind(layer, self.outputs[layer])
        usual = self._usual[layer]
        lengths = usual.norm(dim=-1)
        if not bool(lengths.isfinite().all()) or not bool((lengths > 0).all()):
            raise StartupError(f"cannot place sites: what follows {self.name(layer)} {layer} gives no finite numbers")
        return float(((self._behind(layer, output) - usual).norm(dim=-1) / lengths).median())

    def _behind(self, layer: int, output: Any) -> torch.Tensor:
        """All that what follows block `layer` gives for `output`, [n_tokens, numbers] float32."""
        if layer + 1 in self.blocks or self._last_stage:
            return self._table(self._patched(layer, output))
        # What follows is on another pipeline stage. It is of the same kind, so the block itself stands in for it.
        return self._table(self._again(layer, output))

    @property
    def _last_stage(self) -> bool:
        from vllm.sequence import IntermediateTensors

        return not isinstance(self._given, IntermediateTensors)

    def _patched(self, layer: int, output: Any) -> Any:
        """Block `layer` returns `output`: what the next one makes of it, or the model when it is the last."""
        seen: list[Any] = []

        def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                seen.append(forward(*args, **kwargs))
                return _copied(self.outputs[layer + 1])

            return run

        with ExitStack() as stack:
            for other, block in self.blocks.items():
                given = output if other == layer else self.outputs[other]
                forward = watched(block.forward) if other == layer + 1 else _returning(given)
                stack.enter_context(_instead(block, forward))
            final = self._run()
        return seen[0] if seen else final

    def _again(self, layer: int, output: Any) -> Any:
        """Block `layer` on what it returned itself, in the places that its arguments have for that."""
        block = self.blocks[layer]
        args, kwargs = self._calls[layer]
        bound = inspect.signature(block.forward).bind(*args, **kwargs)
        hidden, residual = output if isinstance(output, tuple | list) and len(output) == 2 else (output, None)
        bound.arguments["hidden_states"] = hidden
        if "residual" in bound.signature.parameters:
            bound.arguments["residual"] = residual
        return block(*_copied(bound.args), **_copied(bound.kwargs))

    def _run(self) -> Any:
        self._given = self._model(**_copied(self._inputs))
        return self._given

    def _table(self, answer: Any) -> torch.Tensor:
        found = [t.float().reshape(self.n_tokens, -1) for t in _tensors(answer) if t.numel() % self.n_tokens == 0]
        return torch.cat(found, dim=-1)


def stream_after(layer: int, trial: Trial, d_model: int) -> Stream:
    """Where the stream is in what block `layer` returns, by what moves what follows."""
    output, name = trial.outputs[layer], trial.name(layer)
    if not isinstance(output, torch.Tensor) and type(output) not in (tuple, list):
        raise StartupError(f"cannot place sites: {name} returns {type(output).__name__}, not the stream or a tuple")
    members = [output] if isinstance(output, torch.Tensor) else list(output)
    if not trial.change(layer, output) <= trial.tolerance:
        raise StartupError(f"cannot place sites: what follows {name} {layer} does not give the same twice")
    read = [
        number
        for number, member in enumerate(members)
        if isinstance(member, torch.Tensor) and member.is_floating_point() and _is_read(layer, number, trial)
    ]
    if not read:
        raise StartupError(f"cannot place sites: what {name} returns is read by nobody")
    for number in read:
        _require_shape(name, members[number], trial.n_tokens, d_model)
    if isinstance(output, torch.Tensor):
        return Stream()
    if len(read) == 1:
        return Stream((read[0],))
    shift = _noise(members[read[0]], _rms(members[read[0]].float() + members[read[1]].float()))
    moved = list(members)
    moved[read[0]], moved[read[1]] = members[read[0]] + shift, members[read[1]] - shift
    if len(read) > 2 or not trial.change(layer, type(output)(moved)) <= trial.tolerance:
        raise StartupError(
            f"cannot place sites: {len(read)} members of what {name} returns are read on, and their sum is not the "
            "stream (it may be scaled, or one of them still has to be summed over tensor-parallel ranks)"
        )
    return Stream((read[0], read[1]))


def _is_read(layer: int, number: int, trial: Trial) -> bool:
    """Whether something follows block `layer` that depends on member `number` of what it returns."""
    output = trial.outputs[layer]
    members = [output] if isinstance(output, torch.Tensor) else list(output)
    largest = max(_rms(m.float()).max() for m in members if isinstance(m, torch.Tensor) and m.is_floating_point())
    members[number] = members[number] + _noise(members[number], largest)
    changed = members[0] if isinstance(output, torch.Tensor) else type(output)(members)
    return not trial.change(layer, changed) <= trial.tolerance


def _require_shape(name: str, member: torch.Tensor, n_tokens: int, d_model: int) -> None:
    shape = list(member.shape)
    if shape in ([n_tokens, d_model], [1, n_tokens, d_model]):
        return
    streams, rest = divmod(member.numel(), n_tokens * d_model)
    if streams > 1 and not rest:
        raise StartupError(
            f"cannot place sites: {name} carries {streams} streams beside one another ({shape}), "
            "so there is not one residual stream to read and to edit"
        )
    raise StartupError(f"cannot place sites: {name} returns {shape} for {n_tokens} tokens of width {d_model}")


def _require_unscaled(block: nn.Module, dtype: torch.dtype) -> None:
    """DeepSeek's blocks divide the whole stream in float16, lest it overflow; the next norm hides that."""
    factor = float(getattr(block, "routed_scaling_factor", None) or 1.0)
    if dtype == torch.float16 and factor != 1.0:
        raise StartupError(
            f"cannot place sites: in float16 {type(block).__name__} keeps the stream divided by {factor:g}, "
            "where no vector and no probe fits it; use bfloat16 or float32"
        )


def _rms(stream: torch.Tensor) -> torch.Tensor:
    """[..., 1]: the root mean square of each token's numbers."""
    return stream.square().mean(dim=-1, keepdim=True).sqrt()


def _noise(like: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Random numbers of that size, the same on every rank."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    noise = torch.randn(like.shape, generator=generator).to(like.device)
    return (noise * scale).to(like.dtype)


def _copied(value: Any) -> Any:
    """`value` with its tensors copied."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(_copied(value.tensors)) if hasattr(value, "tensors") else value


def _tensors(value: Any) -> list[torch.Tensor]:
    """The floating-point tensors of a model's or block's answer."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return _tensors(list(value.tensors.values())) if hasattr(value, "tensors") else []


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _copied(value)


def _inputs(model: Any, vllm_config: Any, dtype: torch.dtype, device: Any) -> dict[str, Any]:
    """Arguments of one pass over random tokens, on a later pipeline stage over random streams."""
    from vllm.distributed.parallel_state import get_pp_group

    generator = torch.Generator(device="cpu").manual_seed(0)
    n_vocabulary = vllm_config.model_config.get_vocab_size()
    positions = torch.arange(N_TOKENS, device=device)
    if vllm_config.model_config.uses_mrope:
        positions = positions.expand(3, N_TOKENS)
    ids = torch.randint(n_vocabulary, (N_TOKENS,), generator=generator).to(device)
    inputs: dict[str, Any] = {"input_ids": ids, "positions": positions}
    if not get_pp_group().is_first_rank:
        streams = model.make_empty_intermediate_tensors(batch_size=N_TOKENS, dtype=dtype, device=device)
        for name, tensor in streams.tensors.items():
            streams.tensors[name] = torch.randn(tensor.shape, generator=generator).to(device, dtype)
        inputs["intermediate_tensors"] = streams
    return inputs


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward` in the place of the module's own, which need not be that of its class: offloading puts one there."""
    kept = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if kept is not None:
            module.forward = kept


class _EmptyIsZero(TorchFunctionMode):
    """While there is no cache, token mixers leave their output as they made it, with whatever lay in memory there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in (torch.empty, torch.empty_like, torch.Tensor.new_empty) else made


@contextmanager
def _forward_context(vllm_config: Any) -> Iterator[None]:
    from vllm.forward_context import set_forward_context

    # Nothing is scheduled, as when vLLM measures its memory: token mixers then need no cache.
    with set_forward_context(None, vllm_config, num_tokens=N_TOKENS, skip_compiled=True):
        yield
