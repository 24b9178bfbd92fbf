"""What one request may ask for: how many edits, and how hard they push, in lengths of the stream."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import CALM_ROWS, HONEST_ROWS, MAX_ACTS, SAE_DECODER, write_all
from api_support.client import HONEST, INLINE, Client, assert_refused, connect
from api_support.fake_engine import FakeServer

from pilothouse.core.config import Limits, ServerConfig
from pilothouse.core.errors import StartupError

LENGTHS = {0: 5.0, 1: 6.0, 2: 7.0, 3: 8.0, 4: 9.0}


def length(row: Any) -> float:
    return float(np.linalg.norm(row.astype(np.float64)))


def strongest() -> list[tuple[dict[str, Any], float]]:
    """Edits of every kind, and the strength at which each puts in half of the stream's length."""
    card, calm, feature = 20.0, length(CALM_ROWS["layer.3"]), length(SAE_DECODER[1])
    return [
        # Its card says 20 at layer 2, which stands above what the server measured.
        (HONEST, 0.5 * card / length(HONEST_ROWS["layer.2"])),
        ({**HONEST, "unit": "resid_norm"}, 0.5 / length(HONEST_ROWS["layer.2"])),
        ({**HONEST, "op": "set"}, 0.5 * card),
        ({"vector": "calm"}, 0.5 * 8.0 / calm),
        ({"vector": "calm", "strength": -1}, 0.5 * 8.0 / calm),
        (INLINE, 0.5 * 8.0 / np.sqrt(8)),
        ({"sae": "features", "feature": 1}, 0.5 * 7.0 / (feature * float(MAX_ACTS[1]))),
        ({"sae": "features", "feature": 1, "op": "clamp", "unit": "raw"}, 0.5 * 7.0 / feature),
        ({"sae": "features", "feature": 1, "op": "min_clamp", "unit": "raw"}, 0.5 * 7.0 / feature),
    ]


def server(tmp_path: Path, **limits: Any) -> FakeServer:
    made = FakeServer(write_all(tmp_path, limits=Limits(**limits)))
    made.app.state.pilothouse.strength_limit.lengths = LENGTHS
    return made


@pytest.mark.parametrize("number", range(9))
async def test_strength_is_limited_in_lengths_of_the_stream(tmp_path: Path, number: int) -> None:
    edit, most = strongest()[number]
    sign = edit.get("strength", 1)
    async with connect(server(tmp_path, max_strength=0.5)) as http:
        client = Client(http)
        allowed = await client.chat(steering=[{**edit, "strength": sign * most * 0.999}])
        assert allowed.status_code == 200, allowed.text
        refused = assert_refused(
            await client.chat(steering=[{**edit, "strength": sign * most * 1.001}]), "steering[0].strength"
        )
        assert "0.5 lengths of the stream" in refused["message"]
        assert (await http.get("/v1/capabilities")).json()["limits"]["max_strength"] == 0.5


async def test_edits_of_one_layer_count_together(tmp_path: Path) -> None:
    half = {"vector": "calm", "strength": 0.3 * 8.0 / length(CALM_ROWS["layer.3"])}
    elsewhere = {"sae": "features", "feature": 1, "unit": "raw", "strength": 0.4 * 7.0 / length(SAE_DECODER[1])}
    async with connect(server(tmp_path, max_strength=0.5)) as http:
        client = Client(http)
        assert (await client.chat(steering=[half, elsewhere])).status_code == 200
        assert_refused(await client.chat(steering=[half, elsewhere, half]), "steering[2].strength")


async def test_what_only_takes_away_is_not_limited(tmp_path: Path) -> None:
    taking = [
        {**HONEST, "op": "ablate", "strength": 2},
        {**HONEST, "op": "cap", "min": -1, "max": 1000},
        {**HONEST, "op": "set", "strength": 0},
        {"sae": "features", "feature": 1, "op": "min_clamp", "unit": "raw", "strength": -1000},
    ]
    pushing = [{**HONEST, "op": "cap", "min": 1}, {**HONEST, "op": "cap", "max": -1}]
    async with connect(server(tmp_path, max_strength=0.0)) as http:
        client = Client(http)
        for edit in taking:
            allowed = await client.chat(steering=[edit])
            assert allowed.status_code == 200, allowed.text
        for edit in pushing:
            assert_refused(await client.chat(steering=[edit]), "steering[0].strength")


async def test_where_no_length_is_known_the_limit_holds(tmp_path: Path) -> None:
    limited = server(tmp_path, max_strength=0.5)
    limited.app.state.pilothouse.strength_limit.lengths = {}
    async with connect(limited) as http:
        client = Client(http)
        assert (await client.chat(steering=[{**HONEST, "strength": 0.1}])).status_code == 200
        assert "not known" in assert_refused(await client.chat(steering=[INLINE]), "steering[0].strength")["message"]


@pytest.mark.parametrize(("strength", "fits"), [(0.1, True), (100.0, False)])
def test_presets_keep_the_limit_as_soon_as_lengths_are_known(tmp_path: Path, strength: float, fits: bool) -> None:
    presets = tmp_path / "presets.json"
    presets.write_text(json.dumps({"calmly": {"steering": [{"vector": "calm", "strength": strength}]}}))
    config = write_all(tmp_path / "given", presets=str(presets), limits=Limits(max_strength=1.0))
    state = FakeServer(config).app.state.pilothouse
    state.strength_limit.lengths = LENGTHS
    if fits:
        state.registry.recheck()
    else:
        with pytest.raises(StartupError, match=r"calmly.*lengths of the stream"):
            state.registry.recheck()


async def test_without_a_limit_there_is_none(client: Client) -> None:
    assert (await client.chat(steering=[{**INLINE, "strength": 1e6}])).status_code == 200
    assert (await client.http.get("/v1/capabilities")).json()["limits"]["max_strength"] is None


async def test_edits_are_counted(tmp_path: Path) -> None:
    async with connect(server(tmp_path, max_edits=2)) as http:
        client = Client(http)
        assert (await client.chat(steering=[INLINE, INLINE])).status_code == 200
        assert_refused(await client.chat(steering=[INLINE, INLINE, INLINE]), "steering")


def test_limits_that_cannot_be_are_refused() -> None:
    for limits in ({"max_edits": -1}, {"max_strength": -0.5}, {"max_strength": float("nan")}):
        with pytest.raises(StartupError, match="must be at least 0"):
            Limits(**limits)
    with pytest.raises(StartupError, match="reload_seconds"):
        ServerConfig(reload_seconds=-1)
    kept = ServerConfig(limits=Limits(max_strength=1.5), uploads="there")
    assert ServerConfig.from_json(kept.to_json()) == kept
