"""What requests ask for is worked out once, as long as it means the same."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import SHAPE, artefact, rows, write_all

from pilothouse.api.plans import Ask, Planner
from pilothouse.api.registry import Registry
from pilothouse.core.config import EngineLayout, Limits, ServerConfig
from pilothouse.core.errors import BadRequest

CALM: dict[str, Any] = {"steering": [{"vector": "calm", "strength": 1}], "probes": ["risk"]}


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return dataclasses.replace(write_all(tmp_path), uploads=str(tmp_path / "uploads"))


@pytest.fixture
def registry(config: ServerConfig) -> Registry:
    return Registry(config, SHAPE)


@pytest.fixture
def planner(registry: Registry) -> Planner:
    return Planner(registry, EngineLayout(), Limits())


def copied(fields: dict[str, Any]) -> dict[str, Any]:
    """The same in other objects, as a second request brings it."""
    return {"steering": [dict(fields["steering"][0])], "probes": list(fields["probes"])}


def test_the_same_fields_are_the_same_ask(planner: Planner) -> None:
    ask = planner.plan(CALM)
    assert planner.plan(copied(CALM)) is ask
    assert planner.plan({**copied(CALM), "top_p": 0.5}) is ask


@pytest.mark.parametrize(
    "other",
    [
        {"probes": ["risk"]},
        {"steering": CALM["steering"]},
        {"steering": [{"vector": "calm", "strength": 1.0000001}], "probes": ["risk"]},
        {"steering": [{"vector": "calm", "strength": 1, "positions": "prompt"}], "probes": ["risk"]},
        {"steering": CALM["steering"], "probes": {"names": ["risk"], "tokens": True}},
        {"steering": CALM["steering"], "probes": ["early"]},
    ],
    ids=str,
)
def test_other_fields_are_another_ask(planner: Planner, other: dict[str, Any]) -> None:
    ask, found = planner.plan(CALM), planner.plan(other)
    fresh = planner.plan(other, planner._registry.catalogue)
    assert found is not ask
    assert found.plan.edits != ask.plan.edits or found.probes != ask.probes or found.tokens != ask.tokens
    assert [edit.digest for edit in found.plan.edits] == [edit.digest for edit in fresh.plan.edits]
    assert [edit.positions for edit in found.plan.edits] == [edit.positions for edit in fresh.plan.edits]
    assert (found.probes, found.tokens, found.steering_given) == (fresh.probes, fresh.tokens, fresh.steering_given)


@pytest.mark.parametrize(
    "almost",
    [
        {"steering": ({"vector": "calm", "strength": 1},), "probes": ["risk"]},
        {"steering": [{"vector": "calm", "strength": True}], "probes": ["risk"]},
        {"steering": [{"vector": "calm", "strength": 1}], "probes": ("risk",)},
        {"steering": [{"vector": "calm", "strength": 1, 1: 2}], "probes": ["risk"]},
        {"steering": 5, "probes": ["risk"]},
        {"steering": [{"vector": "calm", "strength": 1}], "probes": ["risk"], "use_beam_search": True},
    ],
    ids=str,
)
def test_what_is_refused_is_refused_whatever_was_asked_before(planner: Planner, almost: dict[str, Any]) -> None:
    planner.plan(CALM)
    for _ in range(2):
        with pytest.raises(BadRequest):
            planner.plan(almost)


def test_a_name_that_means_something_else_now_is_another_ask(
    planner: Planner, registry: Registry, tmp_path: Path
) -> None:
    before = planner.plan(CALM)
    path = tmp_path / "calm.safetensors"
    path.write_bytes(artefact("vector", {"name": "calm"}, rows(77, "layer.1")))
    registry.add("vectors", registry.read_upload("vectors", path), path, replaces=True)
    after = planner.plan(CALM)
    assert after.plan.edits[0].direction.digest != before.plan.edits[0].direction.digest
    registry.remove("vectors", "calm")
    with pytest.raises(BadRequest, match="no steering vector 'calm'"):
        planner.plan(CALM)


def asked(planner: Planner, n: int) -> list[Ask]:
    """What `n` requests ask for that ask for something else each."""
    return [planner.plan({"steering": [{"vector": "calm", "strength": 1 + k / 4096}]}) for k in range(n)]


def test_no_more_is_kept_than_there_is_room_for(registry: Registry) -> None:
    (ask,) = asked(Planner(registry, EngineLayout(), Limits()), 1)
    room = sum(direction.n_bytes for direction in ask.plan.directions) * 21 // 2
    planner = Planner(registry, EngineLayout(), Limits(adhoc_cache_bytes=room))
    kept = asked(planner, 30)
    assert len(planner._asks) == 10
    assert planner.plan({"steering": [{"vector": "calm", "strength": 1 + 29 / 4096}]}) is kept[-1]
    assert planner.plan({"steering": [{"vector": "calm", "strength": 1.0}]}) is not kept[0]


def test_no_more_than_a_thousand_are_kept_however_small_they_are(planner: Planner) -> None:
    asked(planner, 1100)
    assert 990 < len(planner._asks) <= 1000


def test_what_requests_bring_along_is_not_kept_twice(planner: Planner) -> None:
    row = base64.b64encode(np.ones(SHAPE.d_model, "<f4").tobytes()).decode()
    assert planner.plan({"steering": [{"inline": {"layers": {"0": row}}}]}).plan.edits
    assert not len(planner._asks)
