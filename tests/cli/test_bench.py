"""`pilothouse bench` without its servers: the ratios, what the requests carry, and the committed measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pilothouse.api.plans import Ask, Planner
from pilothouse.api.registry import Registry
from pilothouse.cli.bench_artefacts import GATE, N_DISTINCT, N_PROBES, SAE, Artefacts, make_artefacts
from pilothouse.cli.bench_load import Load, Server
from pilothouse.cli.bench_measure import alone, summarise, summarise_chains
from pilothouse.cli.bench_variants import (
    BARE_IDLE,
    CHAIN_COSTS,
    IDLE,
    PLAIN,
    VARIANTS,
    Place,
    Variant,
    body_of,
    fields_of,
)
from pilothouse.core.config import EngineLayout, Limits, ServerConfig
from pilothouse.core.errors import BadRequest
from pilothouse.core.sites import ModelShape
from pilothouse.engine.wire import resolve
from pilothouse.harbor.paths import model_dir

RESULTS = Path(__file__).parents[2] / "bench" / "results.json"
LAYOUT = EngineLayout()
LAYOUTS = {"ours": LAYOUT, "bare": EngineLayout(chain_steps=0)}
N_PROMPT = 12
OURS = [variant for variant in VARIANTS if variant.server != "plain"]
BY_NAME = {variant.name: variant for variant in VARIANTS}


def harbor_shape() -> ModelShape:
    config = json.loads((model_dir() / "config.json").read_text(encoding="utf-8"))
    depth = config["num_hidden_layers"]
    return ModelShape("harbor", config["hidden_size"], depth, tuple(range(depth)))


SHAPE = harbor_shape()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    return make_artefacts(tmp_path_factory.mktemp("bench"), seed=0)


@pytest.fixture(scope="module")
def registry(made: Artefacts) -> Registry:
    folders = {kind: (str(getattr(made, kind)),) for kind in ("vectors", "probes", "saes")}
    return Registry(ServerConfig(**folders), SHAPE)  # type: ignore[arg-type]


def ask_of(registry: Registry, variant: Variant, number: int) -> Ask:
    """What the server that the variant asks makes of its request."""
    return Planner(registry, LAYOUTS[variant.server], Limits()).plan(fields_of(variant, number))


def items_of(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Items whose variants have these tokens per second by round, and 10 where nothing is said, newest first."""
    n_rounds = len(next(iter(rates.values())))
    return [
        {"round": number, "variant": variant.name, "seconds": 2.0, "tokens": 2 * rate}
        for number in reversed(range(n_rounds))
        for variant in VARIANTS
        for rate in [rates.get(variant.name, [10.0] * n_rounds)[number]]
    ]


def test_a_ratio_is_the_median_of_those_within_rounds() -> None:
    items = items_of({PLAIN.name: [100.0, 10.0, 50.0], IDLE.name: [50.0, 9.0, 10.0]})
    rows = {row["variant"]: row for row in summarise(items, seed=0)}
    assert list(rows) == [variant.name for variant in VARIANTS]
    assert (rows[PLAIN.name]["ratio"], rows[PLAIN.name]["low"], rows[PLAIN.name]["high"]) == (1.0, 1.0, 1.0)
    assert rows[IDLE.name]["tokens_per_second"] == 10.0
    assert rows[IDLE.name]["ratio"] == pytest.approx(0.5)
    assert (rows[IDLE.name]["low"], rows[IDLE.name]["high"]) == pytest.approx((0.2, 0.9))


def test_what_chains_cost_is_our_server_beside_ours_without_them() -> None:
    items = items_of({IDLE.name: [80.0, 8.0, 30.0], BARE_IDLE.name: [100.0, 10.0, 30.0]})
    idle, steered = summarise_chains(items, seed=0)
    assert (idle["variant"], idle["beside"]) == (IDLE.name, BARE_IDLE.name)
    assert idle["ratio"] == pytest.approx(0.8)
    assert (idle["low"], idle["high"]) == pytest.approx((0.8, 1.0))
    assert (steered["ratio"], steered["low"], steered["high"]) == (1.0, 1.0, 1.0)


def test_chains_are_compared_on_the_same_load() -> None:
    for ours, bare in CHAIN_COSTS:
        assert (ours.server, bare.server) == ("ours", "bare")
        assert fields_of(ours, 3) == fields_of(bare, 3)


def test_a_name_is_one_variant() -> None:
    assert len(BY_NAME) == len(VARIANTS)


@pytest.mark.parametrize("variant", OURS, ids=lambda variant: variant.name)
def test_the_server_takes_every_request(registry: Registry, variant: Variant) -> None:
    plans = [ask_of(registry, variant, number).plan for number in range(N_DISTINCT)]
    for plan in plans:
        wire, _ = resolve(plan, N_PROMPT, LAYOUTS[variant.server])
        assert len(plan.edits) == len(variant.steering)
        assert bool(wire.steps) == (variant not in (row for pair in CHAIN_COSTS for row in pair) and _chains(variant))
    if variant.steering:
        assert len({tuple(edit.digest for edit in plan.edits) for plan in plans}) == N_DISTINCT


def _chains(variant: Variant) -> bool:
    return any("op" in entry or "gate" in entry or entry.get("preserve_norm") for entry in variant.steering)


def test_edits_of_vectors_are_made_on_every_layer(registry: Registry) -> None:
    for variant in OURS:
        for edit in ask_of(registry, variant, 0).plan.edits:
            assert tuple(edit.coefficients) == (SHAPE.sites if edit.source == "vector" else (SHAPE.n_layers // 2,))


def test_the_longest_chain_is_as_long_as_a_server_allows(registry: Registry) -> None:
    wires = [resolve(ask_of(registry, variant, 0).plan, N_PROMPT, LAYOUT)[0] for variant in OURS]
    assert max(len(wire.steps) for wire in wires) == LAYOUT.chain_steps


def test_every_operation_and_scope_has_its_row(registry: Registry) -> None:
    edits = [edit for variant in OURS for edit in ask_of(registry, variant, 0).plan.edits]
    assert {edit.op for edit in edits} == {"add", "ablate", "set", "cap", "clamp"}
    assert {edit.gate.scope for edit in edits if edit.gate} == {"token", "rest"}
    assert any(edit.preserve_norm for edit in edits)


def test_a_server_without_chains_refuses_what_is_measured_with_them(registry: Registry) -> None:
    planner = Planner(registry, LAYOUTS["bare"], Limits())
    for variant in OURS:
        if _chains(variant):
            with pytest.raises(BadRequest, match="compiled in"):
                planner.plan(fields_of(variant, 0))


def test_plain_vllm_gets_none_of_our_fields() -> None:
    load = Load("harbor", batch=2, tokens=4)
    assert body_of(PLAIN, load, 1) == load.body(1)
    assert body_of(IDLE, load, 1) == {**load.body(1), "probes": []}


def test_artefacts_are_what_the_registry_takes(registry: Registry) -> None:
    catalogue = registry.catalogue
    assert (len(catalogue.vectors), len(catalogue.probes), list(catalogue.saes)) == (N_DISTINCT, N_PROBES + 1, [SAE])
    assert list(catalogue.probes[GATE].direction.layers) == [0]
    sae = catalogue.saes[SAE]
    assert (sae.architecture, sae.d_in, sae.why_not_read) == ("jumprelu", SHAPE.d_model, None)


class FakeServer(Server):
    """Notes in `stopped`, which it shares with others, whether it is stopped."""

    def __init__(self, place: str, stopped: set[str]) -> None:
        self._place, self._stopped = place, stopped

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._stopped.add(self._place)
        yield
        self._stopped.remove(self._place)


@pytest.mark.parametrize("place", ["plain", "ours", "bare"])
def test_every_server_but_the_one_that_is_asked_is_stopped(place: Place) -> None:
    stopped: set[str] = set()
    servers: dict[Place, Server] = {
        "plain": FakeServer("plain", stopped),
        "ours": FakeServer("ours", stopped),
        "bare": FakeServer("bare", stopped),
    }
    with alone(servers, place) as server:
        assert server is servers[place]
        assert stopped == set(servers) - {place}
    assert not stopped


def test_what_was_measured_is_what_the_command_measures() -> None:
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert [row["variant"] for row in measured["summary"]] == list(BY_NAME)
    assert measured["layouts"] == {
        place: {"sites": len(SHAPE.sites), "chain_steps": layout.chain_steps} for place, layout in LAYOUTS.items()
    }
    rounds = {item["round"] for item in measured["items"]}
    asked = {(item["round"], item["variant"]) for item in measured["items"]}
    assert asked == {(number, name) for number in rounds for name in BY_NAME}
    assert len(measured["items"]) == len(asked)


@pytest.mark.parametrize(("key", "summary"), [("summary", summarise), ("chains", summarise_chains)])
def test_the_committed_figures_follow_from_their_items(key: str, summary: Any) -> None:
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    expected = summary(measured["items"], seed=0)
    assert [row["variant"] for row in measured[key]] == [row["variant"] for row in expected]
    for row, again in zip(measured[key], expected, strict=True):
        found = {name: row[name] for name in ("ratio", "tokens_per_second") if name in again}
        assert found == pytest.approx({name: again[name] for name in found})
        assert row["low"] <= row["ratio"] <= row["high"]
