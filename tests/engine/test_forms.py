"""A step runs the cheapest graph that does what its batch needs, and each graph does what it says and no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config

from pilothouse.core.config import EngineLayout
from pilothouse.engine import sites
from pilothouse.engine.chains import ALPHA, HIGH, LEVEL, LOW, SIGN, THRESHOLD
from pilothouse.engine.forms import LESSER, make_forms
from pilothouse.engine.sites import FULL, Form, Site, StepBuffers, Stream, install_sites

LAYOUT = EngineLayout(rows=1, rows_per_plan=1, chains=1, chain_steps=1, readouts=1)
D_MODEL = 4
N_LAYERS = 2
NEEDS = list(itertools.starmap(Form, itertools.product((False, True), repeat=3)))


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Core(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(D_MODEL, D_MODEL) for _ in range(N_LAYERS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__()
        self.model = Core(vllm_config=vllm_config)

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x)


class Made:
    """A model with sites and forms, compiled by tracing alone."""

    def __init__(self, mode: CompilationMode, layout: EngineLayout = LAYOUT) -> None:
        compilation = CompilationConfig(mode=mode, backend="eager", custom_ops=["none"])
        config = VllmConfig(compilation_config=compilation, additional_config={"pilothouse": {}})
        config.compilation_config.mode, config.compilation_config.backend = mode, "eager"
        with set_current_vllm_config(config):
            self.model = Model(config)
        self.layers = [layer for layer in self.model.model.layers if isinstance(layer, nn.Linear)]
        blocks = dict(enumerate(self.layers))
        self.buffers: StepBuffers
        self.sites: dict[int, Site]
        self.buffers, self.sites = install_sites(
            blocks,
            layout,
            dict.fromkeys(blocks, Stream()),
            d_model=D_MODEL,
            dtype=torch.float32,
            max_tokens=16,
            device=torch.device("cpu"),
        )
        self.forms = make_forms(self.model, self.sites, blocks, lambda: self.buffers.needed)

    def run(self, needed: Form, n_tokens: int) -> torch.Tensor:
        self.buffers.needed = needed
        found: torch.Tensor = self.model(torch.ones(n_tokens, D_MODEL))
        return found


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    torch._dynamo.reset()
    with torch.inference_mode():
        yield Made(CompilationMode.DYNAMO_TRACE_ONCE)
    torch._dynamo.reset()


@pytest.mark.parametrize("needed", NEEDS, ids=str)
def test_a_form_does_what_is_needed_and_the_cheapest_that_does_is_taken(made: Made, needed: Form) -> None:
    assert made.forms == LESSER
    taken = next((form for form in LESSER if form.covers(needed)), FULL)
    with torch.no_grad():
        plain = torch.ones(5, D_MODEL)
        for layer in made.layers:
            plain = nn.Linear.forward(layer, plain)
    for n_tokens in (5, 3):
        torch.testing.assert_close(made.run(needed, n_tokens), plain[:n_tokens])
    spoiled = {
        "adds": [site.edits for site in made.sites.values()],
        "reads": [site.readouts for site in made.sites.values()],
        "chains": [site.bank.writers for site in made.sites.values()],
    }
    for does, tensors in spoiled.items():
        kept = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.fill_(torch.nan)
        made.buffers.scores.zero_()
        seen = made.buffers.scores if does == "reads" else made.run(needed, 5)
        if does == "reads":
            made.run(needed, 5)
        assert bool(seen.isnan().any()) == getattr(taken, does), does
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("columns", [3, sites.SUMMED_COLUMNS + 1], ids=["summed", "multiplied"])
@pytest.mark.parametrize("together", [1, 2048], ids=["each layer alone", "all layers together"])
def test_what_is_called_does_what_is_written(
    together: int, columns: int, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "READ_TOGETHER", together)
    torch._dynamo.reset()
    layout = EngineLayout(rows=2, rows_per_plan=1, chains=2, chain_steps=2, readouts=columns, capture=capture)
    called, written = Made(CompilationMode.DYNAMO_TRACE_ONCE, layout), Made(CompilationMode.NONE, layout)
    with torch.inference_mode():
        written.model.load_state_dict(called.model.state_dict())
        for made in (called, written):
            random = torch.Generator().manual_seed(3)
            for site in made.sites.values():
                for tensor in (site.edits[1:], site.readouts, site.bank.readers[1:], site.bank.writers[1:]):
                    tensor.copy_(torch.randn(tensor.shape, generator=random))
                # Of one chain the first step is open where the second column reads more than 0.1 so far.
                site.bank.numbers[1:, :, ALPHA] = 0.5
                site.bank.numbers[1:, :, HIGH] = torch.inf
                site.bank.numbers[1:, :, LOW] = -torch.inf
                site.bank.numbers[1:, :, THRESHOLD] = -torch.inf
                site.bank.numbers[1, 0, SIGN], site.bank.numbers[1, 0, LEVEL] = 1.0, 0.1
                site.bank.columns[1, 0] = 1
            made.buffers.rows[:6] = torch.tensor([0, 1, 2, 1, 2, 0])
            made.buffers.chains[:6] = torch.tensor([1, 0, 2, 1, 2, 0])
            made.buffers.gains[:6] = torch.tensor([[1, 1], [0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
        for needed, n_tokens in itertools.product(NEEDS, (6, 1, 3)):
            seen = []
            for made in (called, written):
                made.buffers.scores.fill_(7.0)
                # Whatever a form does beyond what is needed shows; so both do all of it.
                taken = next((form for form in LESSER if form.covers(needed)), FULL)
                seen.append((made.run(taken, n_tokens), made.buffers.scores.clone()))
            torch.testing.assert_close(seen[0], seen[1])
            for layer, site in called.sites.items():
                torch.testing.assert_close(site.captured, written.sites[layer].captured)
            assert (seen[0][1][n_tokens:] == 7.0).all()
    torch._dynamo.reset()


def test_models_that_are_not_compiled_have_no_other_forms_and_look_for_themselves() -> None:
    with torch.inference_mode():
        made = Made(CompilationMode.NONE)
        assert made.forms == ()
        for site in made.sites.values():
            site.edits.fill_(torch.nan)
        assert not made.run(Form(adds=False, reads=False, chains=False), 3).isnan().any()
        assert made.run(Form(adds=True, reads=False, chains=False), 3).isnan().all()


def test_there_is_no_form_that_lacks_only_what_no_form_has() -> None:
    with torch.inference_mode():
        made = Made(CompilationMode.DYNAMO_TRACE_ONCE, replace(LAYOUT, chain_steps=0))
    assert made.forms == tuple(form for form in LESSER if not form.reads)


def test_what_is_captured_for_steps_to_come_does_everything_whatever_the_step_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.inference_mode():
        made = Made(CompilationMode.NONE)
        for site in made.sites.values():
            site.edits.fill_(torch.nan)
        idle = Form(adds=False, reads=False, chains=False)
        assert not made.run(idle, 3).isnan().any()
        monkeypatch.setattr(sites, "_capturing", lambda tensor: True)
        assert made.run(idle, 3).isnan().all()
