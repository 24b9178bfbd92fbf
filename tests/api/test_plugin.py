"""The endpoint plugin: what vLLM's server asks of it, with the engine's end replaced."""

import asyncio
import sys
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from api_support.artefacts import SHAPE, write_all
from api_support.fake_engine import decode
from fastapi import FastAPI
from prometheus_client import REGISTRY

from pilothouse.api.extension import Extension
from pilothouse.api.plugin import create_plugin
from pilothouse.api.state import ApiState
from pilothouse.core.config import CONFIG_ENV, EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError, StartupError


@dataclass
class Report:
    """What the self-test found."""

    lengths: dict[int, float] = field(default_factory=lambda: {2: 5.0})

    def __str__(self) -> str:
        return "all is well"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the engine's `install` was given and made."""
    seen: list[Any] = []

    def install(engine_client: Any, state: Any, make_extension: Any) -> None:
        seen.extend([engine_client, make_extension(SHAPE, EngineLayout(), decode, 1)])
        state.openai_serving_models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="alias")])

    frontend = ModuleType("pilothouse.engine.frontend")
    frontend.install = install  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pilothouse.engine", ModuleType("pilothouse.engine"))
    monkeypatch.setitem(sys.modules, "pilothouse.engine.frontend", frontend)

    async def deliver(engine_client: Any, direction: Direction) -> None:
        seen.append((engine_client, direction))

    own_requests = ModuleType("pilothouse.engine.own_requests")
    own_requests.deliver = deliver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pilothouse.engine.own_requests", own_requests)

    async def self_test(engine_client: Any) -> Report:
        if engine_client == "a broken engine":
            raise StartupError("self-test failed")
        return Report()

    selftest = ModuleType("pilothouse.engine.selftest")
    selftest.self_test = self_test  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pilothouse.engine.selftest", selftest)
    return seen


@pytest.fixture
def clean_registry() -> Any:
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.mark.usefixtures("clean_registry")
async def test_it_wires_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[Any]) -> None:
    monkeypatch.setenv(CONFIG_ENV, write_all(tmp_path, default_probes=("risk",)).to_json())
    plugin = create_plugin()
    assert (plugin.name, plugin.required_tasks) == ("pilothouse", ("generate",))
    app = FastAPI()
    plugin.attach_router(app)
    state: Any = SimpleNamespace()
    await plugin.init_state("the engine", state, Namespace())
    engine_client, extension = installed[:2]
    assert engine_client == "the engine"
    assert isinstance(extension, Extension)
    assert isinstance(state.pilothouse, ApiState)
    assert state.pilothouse.self_test == "all is well"
    assert state.pilothouse.strength_limit.lengths == {2: 5.0}
    direction = Direction({})
    await state.pilothouse.deliver(direction)
    assert installed[2:] == [("the engine", direction)]
    assert state.pilothouse.tasks == []
    assert state.pilothouse.registry.catalogue.default_probes == ("risk",)
    assert any(name.startswith("pilothouse_probe_score") for name in REGISTRY._names_to_collectors)


@pytest.mark.usefixtures("clean_registry", "installed")
@pytest.mark.parametrize("endpoint", [None, "http://localhost:4317"])
async def test_it_knows_whether_vllm_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str | None
) -> None:
    monkeypatch.setenv(CONFIG_ENV, write_all(tmp_path).to_json())
    state: Any = SimpleNamespace()
    await create_plugin().init_state("the engine", state, Namespace(otlp_traces_endpoint=endpoint))
    assert state.pilothouse.engine_traces is (endpoint is not None)


@pytest.mark.usefixtures("clean_registry", "installed")
async def test_it_looks_for_changes_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, write_all(tmp_path, reload_seconds=0.02).to_json())
    state: Any = SimpleNamespace()
    await create_plugin().init_state("the engine", state, Namespace())
    (tmp_path / "vectors" / "calm.safetensors").unlink()
    for _ in range(200):
        if "calm" not in state.pilothouse.registry.catalogue.vectors:
            break
        await asyncio.sleep(0.02)
    assert "calm" not in state.pilothouse.registry.catalogue.vectors
    state.pilothouse.tasks[0].cancel()


async def test_errors_end_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[Any]) -> None:
    monkeypatch.delenv(CONFIG_ENV, raising=False)
    with pytest.raises(StartupError, match="pilothouse serve"):
        await create_plugin().init_state(None, SimpleNamespace(), Namespace())  # type: ignore[arg-type]
    config = write_all(tmp_path)
    (tmp_path / "probes" / "risk.safetensors").write_bytes(b"junk")
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    with pytest.raises(ArtefactError, match=r"risk\.safetensors"):
        await create_plugin().init_state(None, SimpleNamespace(), Namespace())  # type: ignore[arg-type]
    assert installed == []


@pytest.mark.usefixtures("clean_registry", "installed")
async def test_a_failed_self_test_ends_the_start_unless_it_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_all(tmp_path)
    broken: Any = "a broken engine"
    monkeypatch.setenv(CONFIG_ENV, replace(config, self_test=False).to_json())
    state: Any = SimpleNamespace()
    await create_plugin().init_state(broken, state, Namespace())
    assert state.pilothouse.self_test is None
    for collector in {c for n, c in REGISTRY._names_to_collectors.items() if n.startswith("pilothouse_")}:
        REGISTRY.unregister(collector)
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    with pytest.raises(StartupError, match="self-test failed"):
        await create_plugin().init_state(broken, state, Namespace())
