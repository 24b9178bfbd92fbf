"""Every operation, gates, presets and monitors over HTTP, against Hugging Face with the papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_support.harness import Reference
from safetensors.numpy import load_file
from serve_support.server import PRESETS, Server

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Gate, Reader
from pilothouse.core.plans import Plan, Readout
from pilothouse.harbor.paths import probes_dir
from pilothouse.probing import load_probes
from pilothouse.steering import load_vector

pytestmark = pytest.mark.engine

BODY = {
    "model": "harbor",
    "prompt": "What is the capital of Spain?",
    "temperature": 0,
    "max_tokens": 8,
    "ignore_eos": True,
    "logprobs": 0,
    "return_token_ids": True,
}


def everywhere(server: Server) -> Direction:
    return load_vector(server.sae.parent.parent / "vectors" / "everywhere.safetensors").direction


def feature(server: Server, number: int) -> tuple[Direction, Reader]:
    weights = load_file(server.sae / "sae_weights.safetensors")
    encoder = np.ascontiguousarray(weights["W_enc"][:, number])
    return Direction({2: weights["W_dec"][number]}), Reader(Direction({2: encoder}), 0.0, 0.0)


def check(server: Server, reference: Reference, entry: dict[str, Any], plan: Plan, **more: Any) -> dict[str, Any]:
    """One request against the reference; its choice."""
    answer = server.post("/v1/completions", {**BODY, "steering": [entry], **more})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    logprobs, _ = reference.run(choice["prompt_token_ids"], choice["token_ids"], plan)
    expected = [float(logprobs[i, token]) for i, token in enumerate(choice["token_ids"])]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=5e-4)
    return choice


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("op", ["ablate", "set", "cap"])
def test_operations_along_a_vector(server: Server, reference: Reference, op: Any, preserve_norm: bool) -> None:
    entry = {"vector": "everywhere", "op": op, "layers": [1, 3], "preserve_norm": preserve_norm}
    entry |= {"set": {"strength": 20}, "cap": {"min": -2, "max": 1}}.get(op, {})
    values = {1: 20.0, 3: 20.0} if op == "set" else {1: 1.0, 3: 1.0}
    bounds = {1: (-2.0, 1.0), 3: (-2.0, 1.0)} if op == "cap" else {}
    edit = Edit("v", everywhere(server), values, "all", op=op, bounds=bounds, preserve_norm=preserve_norm)
    choice = check(server, reference, entry, Plan((edit,)))
    assert (choice["steering"][0]["op"], choice["steering"][0]["layers"]) == (op, [1, 3])


@pytest.mark.parametrize("op", ["clamp", "min_clamp"])
def test_clamps_of_a_feature(server: Server, reference: Reference, op: Any) -> None:
    direction, reader = feature(server, 5)
    entry = {"sae": "random-l2", "feature": 5, "op": op, "strength": 4, "unit": "raw", "positions": "generation"}
    edit = Edit("random-l2", direction, {2: 4.0}, "generation", op=op, source="sae", feature=5, reader=reader)
    check(server, reference, entry, Plan((edit,)))


@pytest.mark.parametrize("scope", ["token", "rest"])
def test_gates_on_a_probe(server: Server, reference: Reference, scope: Any) -> None:
    probe = load_probes(probes_dir())["truthfulness"]
    gate = {"probe": "truthfulness", "when": "above", "threshold": 0.1, "scope": scope}
    entry = {"vector": "everywhere", "strength": 0.3, "layers": [5], "gate": gate}
    level = probe.raw_level(0.1, above=True)
    edit = Edit(
        "everywhere",
        Direction({5: everywhere(server).layers[5]}),
        {5: 0.3},
        "all",
        gate=Gate("truthfulness", probe.direction, above=True, level=level, scope=scope),
    )
    plan = Plan((edit,), (Readout("truthfulness", probe.direction),))
    choice = check(server, reference, entry, plan, probes=[])
    assert choice["steering"][0]["tokens_edited"] > 0
    assert "probes" not in choice


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
    refused = server.post("/v1/responses", {"model": "harbor:careful", "input": "Hello"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_a_monitored_feature_is_in_the_answer_and_in_the_metrics(server: Server) -> None:
    choice = server.post("/v1/completions", {**BODY, "probes": ["busy"]}).json()["choices"][0]
    assert choice["probes"]["busy"]["label"] == "active"
    assert choice["probes"]["busy"]["n_scored"] == 7
    lines = server.get("/metrics").text.splitlines()
    assert any(line.startswith("pilothouse_probe_requests_total") and 'probe="busy"' in line for line in lines)
