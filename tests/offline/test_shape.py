"""What a script's plans are held against is what the engine that was loaded says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pilothouse.core.config import EngineLayout
from pilothouse.core.sites import ModelShape
from pilothouse.engine import llm as module


@pytest.mark.parametrize("ways", [{"drafts": True}, {"stages": (0, 0, 1, 1)}])
def test_stages_and_drafts_reach_the_planner(monkeypatch: pytest.MonkeyPatch, ways: dict[str, Any]) -> None:
    shape = ModelShape("folder/tiny", 4, 4, (0, 1, 2, 3), **ways)
    monkeypatch.setattr(module, "require_supported_config", lambda config: None)
    monkeypatch.setattr(module, "model_shape", lambda config, sites: shape)
    monkeypatch.setattr(module, "LLMClient", lambda *args: SimpleNamespace(install=lambda: None))
    loaded = module.PlannedLLM.__new__(module.PlannedLLM)
    model_config = SimpleNamespace(served_model_name="tiny")
    loaded.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model_config))
    loaded._prepare(EngineLayout(), test=False)
    assert loaded.pilothouse_shape == ModelShape("tiny", 4, 4, (0, 1, 2, 3), **ways)
