"""What Harbor is served with when nothing else is asked for: presets and monitors that fit its own artefacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_support.fake_engine import FakeServer
from typer.testing import CliRunner

from pilothouse.cli.harbor import HARBOR_NAME, LEAST_CHAIN_STEPS, LEAST_READOUTS, harbor_presets
from pilothouse.cli.main import app
from pilothouse.core.config import CONFIG_ENV, EngineLayout, Limits, ServerConfig
from pilothouse.core.sites import ModelShape
from pilothouse.engine import launch
from pilothouse.harbor.paths import model_dir, monitors_file, presets_file, vectors_dir

CHAT = "/v1/chat/completions"
PRESETS = ["honest-if-asked-to-lie", "honest", "cheerful"]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `pilothouse serve` with some flags hands to the API process."""
    monkeypatch.setenv(CONFIG_ENV, "")
    monkeypatch.setattr(launch, "serve", lambda *_: None)

    def configure(*flags: str) -> ServerConfig:
        assert CliRunner().invoke(app, ["serve", *flags], catch_exceptions=False).exit_code == 0
        return ServerConfig.from_environment()

    return configure


def _shape() -> ModelShape:
    config = json.loads((model_dir() / "config.json").read_text(encoding="utf-8"))
    depth = config["num_hidden_layers"]
    return ModelShape(HARBOR_NAME, config["hidden_size"], depth, tuple(range(depth)))


def test_harbor_has_presets_and_monitors_of_its_own_that_can_be_served(configured: Any) -> None:
    config = configured()
    assert (config.presets, config.monitors) == (str(presets_file()), str(monitors_file()))
    layout = EngineLayout(chains=1, chain_steps=LEAST_CHAIN_STEPS, readouts=LEAST_READOUTS)
    server = FakeServer(config, layout, _shape())
    assert server.extension.model_names("harbor") == [f"harbor:{name}" for name in PRESETS]
    plans = {name: server.extension.open({}, CHAT, f"harbor:{name}").plan for name in PRESETS}
    gated, always = plans["honest-if-asked-to-lie"], plans["honest"]
    assert {edit.direction.digest for edit in gated.edits} == {always.edits[0].direction.digest}
    assert all(edit.coefficients == always.edits[0].coefficients for edit in gated.edits)
    gates = [(edit.positions, edit.gate.scope if edit.gate else None) for edit in gated.edits]
    assert gates == [("last_prompt", "token"), ("generation", "rest")]
    assert always.edits[0].gate is None
    assert server.extension.open({}, CHAT, "harbor").plan.empty
    watched = server.extension.open({"probes": ["cheerful-feature"]}, CHAT, "harbor").plan
    assert [readout.label for readout in watched.readouts] == ["cheerful-feature"]


def test_files_that_are_given_take_their_place(configured: Any, tmp_path: Path) -> None:
    presets, monitors = tmp_path / "presets.json", tmp_path / "monitors.json"
    config = configured("--presets", str(presets), "--monitors", str(monitors))
    assert (config.presets, config.monitors) == (str(presets), str(monitors))


def test_other_models_and_other_artefacts_have_none(configured: Any, tmp_path: Path) -> None:
    for flags in ([str(tmp_path)], ["--vectors", str(vectors_dir())], ["--saes", str(tmp_path)]):
        config = configured(*flags)
        assert (config.presets, config.monitors) == (None, None)


def test_a_server_without_room_for_gates_starts_without_presets(configured: Any) -> None:
    config = configured("--chain-steps", "0")
    assert (config.presets, config.monitors) == (None, str(monitors_file()))
    assert harbor_presets(EngineLayout(readouts=LEAST_READOUTS - 1), Limits()) is None
    for flags in (["--max-edits", "1"], ["--max-strength", "2"]):
        assert configured(*flags).presets is None
