"""Every operation, gates, presets and monitors over HTTP, against Hugging Face with the papers' formulas."""

from __future__ import annotations

from typing import Any

import pytest
from engine_support.harness import Reference
from serve_support.operations import BODY, check_along_a_vector, check_clamp, check_gate
from serve_support.server import PRESETS, Server

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("op", ["ablate", "set", "cap"])
def test_operations_along_a_vector(server: Server, reference: Reference, op: Any, preserve_norm: bool) -> None:
    check_along_a_vector(server, reference, op, preserve_norm)


@pytest.mark.parametrize("op", ["clamp", "min_clamp"])
def test_clamps_of_a_feature(server: Server, reference: Reference, op: Any) -> None:
    check_clamp(server, reference, op)


@pytest.mark.parametrize("scope", ["token", "rest"])
def test_gates_on_a_probe(server: Server, reference: Reference, scope: Any) -> None:
    check_gate(server, reference, scope)


def test_a_gate_can_end_the_answer(server: Server) -> None:
    gate = {"probe": "truthfulness", "when": "above", "threshold": 0.0, "action": "stop"}
    entry = {"vector": "honest", "positions": "generation", "gate": gate}
    choice = server.post("/v1/completions", {**BODY, "steering": [entry]}).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "probe:truthfulness")
    assert len(choice["token_ids"]) == 1
    never = {**entry, "gate": {**gate, "threshold": 1.0}}
    choice = server.post("/v1/completions", {**BODY, "steering": [never]}).json()["choices"][0]
    assert (choice["finish_reason"], len(choice["token_ids"])) == ("length", 8)


def test_a_preset_is_a_model_of_its_own(server: Server) -> None:
    names = [model["id"] for model in server.get("/v1/models").json()["data"]]
    assert names == ["harbor", "harbor:careful"]
    answer = server.post("/v1/completions", {**BODY, "model": "harbor:careful"}).json()
    assert answer["model"] == "harbor"
    spelled_out = server.post("/v1/completions", {**BODY, **PRESETS["careful"]}).json()
    for key in ("text", "steering", "probes"):
        assert answer["choices"][0][key] == spelled_out["choices"][0][key]
    assert server.post("/v1/completions", {**BODY, "model": "harbor:wild"}).status_code == 404
    refused = server.post("/v1/embeddings", {"model": "harbor:careful", "input": "Hello"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_a_monitored_feature_is_in_the_answer_and_in_the_metrics(server: Server) -> None:
    choice = server.post("/v1/completions", {**BODY, "probes": ["busy"]}).json()["choices"][0]
    assert choice["probes"]["busy"]["label"] == "active"
    assert choice["probes"]["busy"]["n_scored"] == 7
    lines = server.get("/metrics").text.splitlines()
    assert any(line.startswith("pilothouse_probe_requests_total") and 'probe="busy"' in line for line in lines)
