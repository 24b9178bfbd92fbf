"""What the bursts of `pilothouse bench` carry, against the registry and the planner of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilothouse.api.plans import Ask, Planner
from pilothouse.api.registry import Registry
from pilothouse.cli.bench.artefacts import GATE, N_PROBES, SAE, Artefacts, make_artefacts
from pilothouse.cli.bench.shapes import HARBOR, LLAMA_8B, PROMPT_IDS, QWEN_4B, SMALL, n_parameters
from pilothouse.cli.bench.variants import (
    ADD,
    AGAIN,
    BARE_IDLE,
    BARE_STEERED,
    DEFAULTS,
    IDLE,
    MORE,
    N_INLINE_LAYERS,
    ONE_VECTOR,
    PLAIN,
    STEERED,
    WIDE_STREAMED,
    Requests,
    Variant,
)
from pilothouse.core.config import EngineLayout, Limits, ServerConfig
from pilothouse.core.errors import BadRequest
from pilothouse.core.sites import ModelShape
from pilothouse.engine.wire import resolve
from pilothouse.harbor.paths import model_dir

LAYOUT = EngineLayout()
LAYOUTS = {
    "ours": LAYOUT,
    "wide": EngineLayout(readouts=N_PROBES),
    "bare": EngineLayout(chain_steps=0),
}
BATCH, N_PROMPT = 5, 12
VARIANTS = (*DEFAULTS, *MORE)
INLINE = next(variant for variant in MORE if variant.source == "inline")
SHAPES = {"harbor": (HARBOR.width, HARBOR.depth), "deeper": (48, 11)}


@pytest.fixture(scope="module", params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> ModelShape:
    width, depth = SHAPES[request.param]
    return ModelShape(request.param, width, depth, tuple(range(depth)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shape: ModelShape) -> Artefacts:
    folder = tmp_path_factory.mktemp("bench")
    return make_artefacts(folder, shape.d_model, shape.sites, BATCH, seed=0, sae=True)


@pytest.fixture(scope="module")
def registry(made: Artefacts, shape: ModelShape) -> Registry:
    folders = {kind: (str(getattr(made, kind)),) for kind in ("vectors", "probes", "saes")}
    return Registry(ServerConfig(**folders), shape)  # type: ignore[arg-type]


def requests_of(shape: ModelShape) -> Requests:
    return Requests(shape.model, shape.d_model, shape.n_layers, BATCH)


def bodies_of(shape: ModelShape, variant: Variant, seed: str = "0") -> list[dict[str, Any]]:
    return [json.loads(body) for body in requests_of(shape).bodies(variant, BATCH, N_PROMPT, 4, seed)]


def asks_of(registry: Registry, variant: Variant) -> list[Ask]:
    """What the server that the variant asks makes of a burst."""
    planner = Planner(registry, LAYOUTS[variant.server], Limits())
    fields: list[dict[str, Any]] = [
        {name: body[name] for name in ("steering", "probes") if name in body}
        for body in bodies_of(registry.shape, variant)
    ]
    return [planner.plan(found) for found in fields]


def test_artefacts_are_what_the_registry_takes(registry: Registry) -> None:
    catalogue, shape = registry.catalogue, registry.shape
    assert (len(catalogue.vectors), len(catalogue.probes), list(catalogue.saes)) == (BATCH, N_PROBES + 1, [SAE])
    assert {tuple(sorted(vector.direction.layers)) for vector in catalogue.vectors.values()} == {shape.sites}
    assert list(catalogue.probes[GATE].direction.layers) == [0]
    sae = catalogue.saes[SAE]
    assert (sae.architecture, sae.d_in, sae.why_not_read) == ("jumprelu", shape.d_model, None)


def test_artefacts_lie_where_there_are_sites(tmp_path: Path) -> None:
    made = make_artefacts(tmp_path, 16, range(2), 3, seed=0)
    folders = {kind: (str(getattr(made, kind)),) for kind in ("vectors", "probes", "saes")}
    found = Registry(ServerConfig(**folders), ModelShape("m", 16, 6, (0, 1)))  # type: ignore[arg-type]
    assert len(found.catalogue.vectors) == 3
    assert not found.catalogue.saes


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_server_takes_every_request(registry: Registry, variant: Variant) -> None:
    asks = asks_of(registry, variant)
    for ask in asks:
        wire, _ = resolve(ask.plan, N_PROMPT, LAYOUTS[variant.server])
        assert len(ask.plan.edits) == len(variant.steering)
        assert len(ask.probes) == variant.n_probes
        assert ask.tokens == variant.token_scores
        assert bool(wire.steps) == _chains(variant)
    distinct = {tuple(edit.digest for edit in ask.plan.edits) for ask in asks}
    assert len(distinct) == (BATCH if variant.steering and variant.source != "one" else 1)


def _chains(variant: Variant) -> bool:
    return any("op" in entry or "gate" in entry or entry.get("preserve_norm") for entry in variant.steering)


def test_edits_of_vectors_are_made_on_every_layer(registry: Registry) -> None:
    shape = registry.shape
    layers = {"vector": shape.sites, "sae": (shape.n_layers // 2,), "inline": shape.sites[:N_INLINE_LAYERS]}
    for variant in VARIANTS:
        for edit in asks_of(registry, variant)[0].plan.edits:
            assert tuple(sorted(edit.coefficients)) == layers[edit.source]


def test_the_longest_chain_is_as_long_as_a_server_allows(registry: Registry) -> None:
    wires = [resolve(asks_of(registry, v)[0].plan, N_PROMPT, LAYOUT)[0] for v in VARIANTS if v.server == "ours"]
    assert max(len(wire.steps) for wire in wires) == LAYOUT.chain_steps


def test_every_operation_and_scope_is_measured(registry: Registry) -> None:
    edits = [edit for variant in VARIANTS for edit in asks_of(registry, variant)[0].plan.edits]
    assert {edit.op for edit in edits} == {"add", "ablate", "set", "cap", "clamp"}
    assert {edit.gate.scope for edit in edits if edit.gate} == {"token", "rest"}
    assert any(edit.preserve_norm for edit in edits)


def test_64_probes_need_the_server_with_room_for_them(registry: Registry) -> None:
    with pytest.raises(BadRequest, match="at most 16 probes"):
        Planner(registry, LAYOUT, Limits()).plan({"probes": bodies_of(registry.shape, WIDE_STREAMED)[0]["probes"]})


def test_what_chains_cost_is_measured_on_the_same_load() -> None:
    shape = ModelShape("m", 8, 2, (0, 1))
    assert bodies_of(shape, IDLE) == bodies_of(shape, BARE_IDLE)
    assert bodies_of(shape, STEERED) == bodies_of(shape, BARE_STEERED)


def test_plain_vllm_and_an_idle_server_get_none_of_our_fields() -> None:
    shape = ModelShape("m", 8, 2, (0, 1))
    assert bodies_of(shape, PLAIN) == bodies_of(shape, IDLE) == bodies_of(shape, AGAIN)
    known = {"model", "prompt", "max_tokens", "temperature", "ignore_eos"}
    assert all(set(body) == known for body in bodies_of(shape, PLAIN))


def test_prompts_are_distinct_ids_of_the_asked_length_and_new_with_every_seed() -> None:
    shape = ModelShape("m", 8, 2, (0, 1))
    prompts = [tuple(body["prompt"]) for seed in ("0", "1") for body in bodies_of(shape, STEERED, seed)]
    assert len(set(prompts)) == 2 * BATCH
    assert all(len(prompt) == N_PROMPT and set(prompt) <= set(PROMPT_IDS) for prompt in prompts)
    assert bodies_of(shape, STEERED) == bodies_of(shape, STEERED)


def test_inline_vectors_are_new_in_every_request_and_burst() -> None:
    shape = ModelShape("m", 8, 12, tuple(range(12)))
    layers = [body["steering"][0]["inline"]["layers"] for seed in ("0", "1") for body in bodies_of(shape, INLINE, seed)]
    assert all(len(found) == N_INLINE_LAYERS for found in layers)
    texts = [text for found in layers for text in found.values()]
    assert len(set(texts)) == len(texts)


def test_one_vector_for_all_is_one_plan_and_three_are_three_edits() -> None:
    noise = np.random.default_rng(0)
    requests = Requests("m", 8, 2, BATCH)
    assert requests.fields(ONE_VECTOR, 0, noise) == requests.fields(ONE_VECTOR, 3, noise)
    three = next(variant for variant in MORE if variant.name.startswith("three"))
    named = [entry["vector"] for entry in requests.fields(three, 4, noise)["steering"]]
    assert named == ["bench-4", "bench-0", "bench-1"]


def test_a_name_is_one_variant() -> None:
    assert len({variant.name for variant in (PLAIN, AGAIN, *VARIANTS)}) == len(VARIANTS) + 2
    assert STEERED.steering == (ADD,)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SMALL.config, 596_049_920),
        (QWEN_4B.config, 4_022_468_096),
        (LLAMA_8B.config, 8_030_261_248),
    ],
)
def test_shapes_have_as_many_parameters_as_published(config: dict[str, Any], expected: int) -> None:
    assert n_parameters(config) == expected


def test_the_embedded_model_has_as_many_parameters_as_its_file() -> None:
    from safetensors import safe_open

    with safe_open(model_dir() / "model.safetensors", framework="numpy") as file:
        sizes = [int(np.prod(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    assert n_parameters(HARBOR.config) == sum(sizes)


def test_the_folder_of_a_shape_has_a_configuration_and_a_tokenizer_of_its_whole_vocabulary(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = SMALL.prepare(tmp_path)
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("qwen3", 1024, 28)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == SMALL.config["vocab_size"]
    assert tokenizer.decode([SMALL.config["vocab_size"] - 1]) == "~151935"
    assert HARBOR.prepare(tmp_path) == model_dir()


def test_prompt_ids_are_words_of_every_model() -> None:
    vocabulary = [model.config["vocab_size"] for model in (HARBOR, SMALL, QWEN_4B, LLAMA_8B)]
    assert max(PROMPT_IDS) < min(vocabulary)


def test_the_cache_holds_the_whole_burst() -> None:
    # A token of the 8B shape: 2 * 32 layers * 8 heads * 128 numbers of 2 bytes.
    assert LLAMA_8B.cache_bytes(100_000) == 125_000 * 131072
    assert HARBOR.cache_bytes(16) == 256 << 20
