"""Where sites are placed, and what is refused because they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support.harness import Engine
from matrix_support.architectures import ROWS
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.sequence import IntermediateTensors

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError
from pilothouse.engine.placement import N_TOKENS, TOLERANCE, Trial, find_blocks, stream_after
from pilothouse.engine.sites import Site, StepBuffers, Stream

WIDTH = 16
Enter = Callable[[Any], torch.Tensor]
Leave = Callable[[torch.Tensor, torch.Tensor], Any]


class Mixer(nn.Module, AttentionLayerBase):  # type: ignore[misc]
    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Mixer()


class Model(nn.Module):
    def __init__(self, *lists: nn.ModuleList) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.ModuleList(part) for part in lists])


def test_the_list_of_blocks_with_attention_is_found_whatever_it_is_called() -> None:
    blocks = nn.ModuleList([Block() for _ in range(3)])
    model = Model(nn.ModuleList([nn.Linear(1, 1) for _ in range(3)]), blocks)
    assert list(find_blocks(model, 3)) == [0, 1, 2]
    assert find_blocks(model, 3)[1] is next(m for m in model.modules() if m is blocks[1])


@pytest.mark.parametrize("n_lists", [0, 2])
def test_no_list_or_two_lists_are_refused(n_lists: int) -> None:
    lists = [nn.ModuleList([Block() for _ in range(3)]) for _ in range(n_lists)]
    with pytest.raises(StartupError, match="cannot place sites in Model"):
        find_blocks(Model(*lists), 3)


def test_one_list_that_is_kept_in_two_places_is_one() -> None:
    blocks = nn.ModuleList([Block() for _ in range(3)])
    assert list(find_blocks(Model(blocks, blocks), 3)) == [0, 1, 2]


def test_of_a_model_that_also_sees_the_blocks_of_its_language_model_are_taken() -> None:
    class Seeing(Model):
        def get_language_model(self) -> nn.Module:
            return nn.ModuleList([self.parts[1]])

    model = Seeing(*(nn.ModuleList([Block() for _ in range(3)]) for _ in range(2)))
    assert find_blocks(model, 3)[0] is model.parts[1][0]  # type: ignore[index]


class Toy(nn.Module):
    """A block. `enter` makes its input stream of what it is given; `leave` makes what it returns of that stream and of
    what it adds to it."""

    def __init__(self, enter: Enter, leave: Leave) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.enter, self.leave = enter, leave

    def forward(self, given: Any) -> Any:
        stream = self.enter(given)
        return self.leave(stream, self.mix(stream).tanh())


class ToyModel(nn.Module):
    def __init__(self, enter: Enter, leave: Leave, passes: int = 1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList([Toy(enter, leave) for _ in range(3)])
        self.enter, self.leave, self.passes = enter, leave, passes

    def forward(self, stream: torch.Tensor) -> Any:
        given = self.leave(stream, torch.zeros_like(stream))
        for block in [*self.blocks] * self.passes:
            given = block(given)
        return self.enter(given) * 0.5


@torch.inference_mode()
def streams_of(model: ToyModel) -> list[Stream]:
    inputs = {"stream": torch.randn(N_TOKENS, WIDTH, generator=torch.Generator().manual_seed(4))}
    trial = Trial(model, dict(enumerate(model.blocks)), inputs, TOLERANCE[torch.float32])
    return [stream_after(layer, trial, WIDTH) for layer in range(3)]


def the_sum(given: Any) -> torch.Tensor:
    # As vLLM's norms do: the sum is written into what came in.
    hidden, residual = given
    summed: torch.Tensor = hidden + residual
    residual.copy_(summed)
    return summed


PLACED: dict[str, tuple[Enter, Leave, Stream]] = {
    "the stream itself": (lambda given: given, lambda s, f: s + f, Stream()),
    "with a batch dimension": (lambda given: given[0], lambda s, f: (s + f)[None], Stream()),
    "a sum": (the_sum, lambda s, f: (f, s), Stream((0, 1))),
    "a sum in a list": (the_sum, lambda s, f: [f, s], Stream((0, 1))),
    "a dead second member": (lambda given: given[0], lambda s, f: (s + f, s), Stream((0,))),
    "a dead first member": (lambda given: given[1], lambda s, f: (s, s + f), Stream((1,))),
    "a second member that is none": (lambda given: given[0], lambda s, f: (s + f, None), Stream((0,))),
    "whole numbers beside it": (lambda given: given[0], lambda s, f: (s + f, torch.arange(3)), Stream((0,))),
}


@pytest.mark.parametrize("kind", PLACED)
def test_the_stream_is_found_by_what_moves_what_follows(kind: str) -> None:
    enter, leave, expected = PLACED[kind]
    assert streams_of(ToyModel(enter, leave)) == [expected] * 3


NOWHERE: dict[str, tuple[Enter, Leave, str]] = {
    "scaled": (lambda given: given[0] + 0.5 * given[1], lambda s, f: (f, s), "their sum is not the stream"),
    # Two ranks: what is not summed over them yet counts twice when the same is added to it on both.
    "not reduced": (lambda given: 2 * given[0] + given[1], lambda s, f: (f, s), "summed over tensor-parallel ranks"),
    "three": (lambda given: given[0] + given[1] + given[2], lambda s, f: (f, s, s), "3 members of what Toy returns"),
    "four streams": (lambda given: given.mean(0), lambda s, f: (s + f).expand(4, *s.shape).clone(), "4 streams beside"),
    "another width": (lambda given: given[:, :WIDTH], lambda s, f: torch.cat([s, f[:, :5]], dim=1), "of width 16"),
    "nobody": (lambda given: torch.ones(N_TOKENS, WIDTH), lambda s, f: (f, s), "is read by nobody"),
    "by chance": (lambda given: given + torch.rand(1), lambda s, f: s + f, "does not give the same twice"),
    "not a number": (lambda given: given * torch.nan, lambda s, f: s + f, "gives no finite numbers"),
    "a dictionary": (lambda given: given["s"], lambda s, f: {"s": s + f}, "returns dict"),
}


@pytest.mark.parametrize("kind", NOWHERE)
def test_what_is_no_single_stream_is_refused_with_the_reason(kind: str) -> None:
    enter, leave, reason = NOWHERE[kind]
    with pytest.raises(StartupError, match=f"cannot place sites: .*{reason}"):
        streams_of(ToyModel(enter, leave))


def test_blocks_that_run_twice_in_a_pass_are_refused() -> None:
    with pytest.raises(StartupError, match="Toy 0 runs 2 times in one pass"):
        streams_of(ToyModel(lambda given: given, lambda s, f: s + f, passes=2))


def test_the_last_block_of_a_pipeline_stage_is_tried_out_on_itself() -> None:
    class Stage(ToyModel):
        def __init__(self) -> None:
            super().__init__(the_sum, lambda s, f: (f, s))
            for block in self.blocks:
                block.forward = partial(_by_name, block)

        def forward(self, stream: torch.Tensor) -> Any:
            hidden, residual = torch.zeros_like(stream), stream
            for block in self.blocks:
                hidden, residual = block(hidden_states=hidden, residual=residual)
            return IntermediateTensors({"hidden_states": hidden, "residual": residual})

    assert streams_of(Stage()) == [Stream((0, 1))] * 3


def _by_name(block: Any, hidden_states: torch.Tensor, residual: torch.Tensor) -> Any:
    return Toy.forward(block, (hidden_states, residual))


def test_nothing_that_was_put_in_for_the_trial_stays() -> None:
    model = ToyModel(the_sum, lambda s, f: (f, s))
    before = [dict(block.__dict__) for block in model.blocks]
    streams_of(model)
    assert [dict(block.__dict__) for block in model.blocks] == before
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)


@pytest.mark.parametrize("kind", PLACED)
def test_a_site_reads_the_stream_and_edits_what_the_next_block_takes(kind: str) -> None:
    enter, leave, where = PLACED[kind]
    layout = EngineLayout(rows=1, rows_per_plan=1, readouts=1, chain_steps=0)
    buffers = StepBuffers(N_TOKENS, layout, torch.device("cpu"))
    site = Site(buffers, layout, WIDTH, torch.float32, first=True, stream=where)
    site.edits[1] = torch.arange(WIDTH)
    site.readouts[0, 2] = 1.0
    buffers.rows[3] = 1
    stream, part = torch.randn(2, N_TOKENS, WIDTH)
    output = leave(stream, part)
    edited = site.hook(nn.Identity(), (), output)
    assert type(edited) is type(output)
    torch.testing.assert_close(buffers.scores[:, 0], (stream + part)[:, 2])
    expected = stream + part
    expected[3] += torch.arange(WIDTH)
    torch.testing.assert_close(enter(edited), expected)


@pytest.mark.engine
def test_several_streams_are_refused_in_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilothouse.engine.failure import FAILURE_FILE_ENV, reported_failure

    next(row for row in ROWS if row.name == "Gemma 3n").save(tmp_path)
    monkeypatch.setenv(FAILURE_FILE_ENV, str(tmp_path / "failure"))
    with pytest.raises(RuntimeError):
        Engine(tmp_path, EngineLayout(), enforce_eager=True)
    assert reported_failure() == (
        "cannot place sites: Gemma3nDecoderLayer carries 4 streams beside one another ([4, 8, 64]), "
        "so there is not one residual stream to read and to edit"
    )


@pytest.mark.engine
@pytest.mark.slow
def test_deepseek_in_float16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilothouse.engine.failure import FAILURE_FILE_ENV, reported_failure

    row = next(row for row in ROWS if row.name == "DeepSeek-V3")
    row.save(tmp_path)
    monkeypatch.setenv(FAILURE_FILE_ENV, str(tmp_path / "failure"))
    with pytest.raises(RuntimeError):
        Engine(tmp_path, EngineLayout(), enforce_eager=True, dtype="float16")
    assert "in float16 DeepseekV2DecoderLayer keeps the stream divided by 2.5" in str(reported_failure())
