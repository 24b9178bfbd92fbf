"""Every route that vLLM serves under any flag honours our fields, is guarded, or is known to generate nothing."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from vllm.entrypoints.launchers.app import build_app
from vllm.tasks import GENERATION_TASKS, POOLING_TASKS

from pilothouse.api.guard import HONOURING, is_guarded
from pilothouse.core.config import EngineLayout
from pilothouse.engine.launch import parse_arguments

WITHOUT_A_MODEL = {
    "/abort_requests",
    "/adapters",
    "/collective_rpc",
    "/detokenize",
    "/finish_weight_update",
    "/init_weight_transfer_engine",
    "/is_scaling_elastic_ep",
    "/pause",
    "/ping",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/scale_elastic_ep",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_weight_update",
    "/tokenize",
    "/update_weight_version",
    "/update_weights",
    "/wake_up",
    "/weight_checker",
}
"""Those that take a POST and neither generate nor score."""


def test_no_route_of_vllm_would_ignore_our_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    args = parse_arguments(["some/model", "--enable-lora"], EngineLayout())
    routes = build_app(args, (*GENERATION_TASKS, *POOLING_TASKS)).routes
    taking = {
        route.path
        for route in routes
        if isinstance(route, APIWebSocketRoute) or (isinstance(route, APIRoute) and "POST" in route.methods)
    }
    assert taking >= HONOURING
    assert len(taking) > 40
    assert {path for path in taking - HONOURING if not is_guarded(path)} == WITHOUT_A_MODEL
