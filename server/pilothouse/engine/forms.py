"""Forms of the compiled graph: with all that a site can do, and without what a step does not need.

What is compiled in costs every step, asked for or not. Where steps are not captured in graphs of the device (on CPU), a
model is therefore compiled several times over, with the same weights, buffers and cache, and each step takes the
cheapest form that does what its batch needs. All forms compute the same: what one of them lacks would have been zero.

Seam: the classes that vLLM's `support_torch_compile` decorates (vllm/compilation/decorators.py and wrapper.py), of
which a twin is made for each further form. Held by a contract test.
"""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.config import CompilationMode, set_current_vllm_config
from vllm.forward_context import get_forward_context, is_forward_context_available

from pilothouse.engine.sites import FULL, IDLE, SITE_NAME, Form, Site, read_together

LESSER = (
    IDLE,
    Form(adds=True, reads=False, chains=False),
    Form(adds=True, reads=True, chains=False),
)
"""Beside the full one, cheapest first."""

Sites = Mapping[nn.Module, Site | None]


def make_forms(
    model: nn.Module, sites: Mapping[int, Site], blocks: Mapping[int, nn.Module], current: Callable[[], Form]
) -> tuple[Form, ...]:
    """Let the compiled part of `model` run in the cheapest form that covers `current()`; which there are beside the
    full one.

    sites, blocks: by layer. There are none for models that are not compiled, whose sites look for themselves, or that
    are captured in graphs.
    """
    compiled = _compiled_around(model, list(blocks.values()))
    if compiled is None:
        return ()
    read_together(sites)
    # Where no chains are compiled in at all, reading is all that the full form does.
    chains = any(site.bank.chain_steps for site in sites.values())
    offered = LESSER if chains else tuple(form for form in LESSER if not form.reads)
    twins = {}
    for form in offered:
        lesser = {blocks[layer]: site.in_form(form) for layer, site in sites.items()}
        twins[form] = _twin(compiled, lesser, form)
    by_need = {
        needed: twins.get(next((form for form in offered if form.covers(needed)), FULL))
        for needed in itertools.starmap(Form, itertools.product((False, True), repeat=3))
    }
    cls = type(compiled)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        twin = by_need[current()]
        if twin is None or (is_forward_context_available() and get_forward_context().skip_compiled):
            return cls.__call__(self, *args, **kwargs)
        return twin(*args, **kwargs)

    compiled.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    return offered


def _compiled_around(model: nn.Module, blocks: Sequence[nn.Module]) -> Any:
    """The part of `model` that is traced once and whole, with all of `blocks` in it; None when there is none."""
    for module in model.modules():
        if not isinstance(module, TorchCompileWithNoGuardsWrapper) or module.do_not_compile:
            continue
        if module.compilation_config.mode != CompilationMode.DYNAMO_TRACE_ONCE:
            continue
        if set(blocks) <= set(module.modules()):
            return module
    return None


def _twin(compiled: Any, sites: Sites, form: Form) -> nn.Module:
    """`compiled` with other sites in its blocks, to be compiled by itself; all else is shared."""
    twin = cast(Any, _with_sites(compiled, sites))
    # By this vLLM knows what it has compiled before, and would take the one for the other.
    twin.vllm_config = copy.copy(compiled.vllm_config)
    twin.vllm_config.additional_config = {**compiled.vllm_config.additional_config, "pilothouse_form": list(form)}
    twin.compiled, twin.aot_compiled_fn, twin.was_aot_compile_fn_loaded_from_disk = False, None, False
    with set_current_vllm_config(twin.vllm_config):
        TorchCompileWithNoGuardsWrapper.__init__(twin, compiled._compile_prefix, compiled._is_encoder)
    return cast(nn.Module, twin)


def _with_sites(module: nn.Module, sites: Sites) -> nn.Module:
    """`module`, copied as far as there are blocks in it, each with its site of `sites` instead of its own, or none."""
    changed = {name: _with_sites(child, sites) for name, child in module.named_children()}
    changed = {name: child for name, child in changed.items() if child is not module._modules[name]}
    if not changed and module not in sites:
        return module
    found = copy.copy(module)
    found._modules = {**module._modules, **changed}
    if module in sites:
        # A loaded model's blocks have no other hooks, or they were refused.
        found._forward_hooks = OrderedDict()
        del found._modules[SITE_NAME]
        if (site := sites[module]) is not None:
            found.add_module(SITE_NAME, site)
            found.register_forward_hook(site.hook)
    return found
