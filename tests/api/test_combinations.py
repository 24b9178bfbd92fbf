"""Gates of scope rest, where an engine has pipeline stages or verifies drafts: kept to the letter, or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_support.artefacts import SHAPE, write_all
from api_support.client import HONEST, assert_refused, connect
from api_support.client import Client as Requests
from api_support.fake_engine import FakeServer

from pilothouse.core.errors import StartupError


def gated(probe: str, scope: str, **edit: Any) -> dict[str, Any]:
    return {**HONEST, **edit, "gate": {"probe": probe, "when": "above", "threshold": 0.5, "scope": scope}}


async def test_a_stage_cannot_wait_for_what_a_later_one_reads(tmp_path: Path) -> None:
    # `honest` edits layer 2; the probe of truth reads layers 1 and 3, that of risk layer 2.
    server = FakeServer(write_all(tmp_path), shape=replace(SHAPE, stages=(0, 0, 0, 1, 1)))
    async with connect(server) as http:
        client = Requests(http)
        refused = await client.chat(steering=[HONEST, gated("truthfulness", "rest")])
        said = assert_refused(refused, "steering[1].gate.scope")["message"]
        assert "layer 3, on pipeline stage 1, for an edit of layer 2 on stage 0" in said
        for entry in (gated("risk", "rest"), gated("risk", "token")):
            assert (await client.chat(steering=[entry])).status_code == 200
        capabilities = (await http.get("/v1/capabilities")).json()
        assert (capabilities["gate_scopes"], capabilities["pipeline_stages"]) == (["token", "rest"], [0, 0, 0, 1, 1])


async def test_a_latch_cannot_be_kept_among_drafts(tmp_path: Path) -> None:
    server = FakeServer(write_all(tmp_path), shape=replace(SHAPE, drafts=True))
    async with connect(server) as http:
        client = Requests(http)
        refused = await client.chat(steering=[gated("risk", "rest")])
        assert "speculative decoding" in assert_refused(refused, "steering[0].gate.scope")["message"]
        stops = gated("early", "rest")
        stops["gate"]["action"] = "stop"
        for entry in (stops, gated("risk", "token")):
            assert (await client.chat(steering=[entry])).status_code == 200
        assert (await http.get("/v1/capabilities")).json()["gate_scopes"] == ["token"]


def test_a_preset_that_could_never_be_served_ends_the_start(tmp_path: Path) -> None:
    presets = tmp_path / "presets.json"
    presets.write_text('{"late": {"steering": [' + str(gated("risk", "rest")).replace("'", '"') + "]}}")
    config = write_all(tmp_path, presets=str(presets))
    FakeServer(config)
    with pytest.raises(StartupError, match="speculative decoding"):
        FakeServer(config, shape=replace(SHAPE, drafts=True))
