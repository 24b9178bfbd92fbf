"""Requests with operations and gates, and what Hugging Face says that they must come to."""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_support.harness import Reference
from safetensors.numpy import load_file

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Gate, Reader
from pilothouse.core.plans import Plan, Readout
from pilothouse.harbor.paths import probes_dir
from pilothouse.probing import load_probes
from pilothouse.steering import load_vector
from serve_support.server import Server

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


def check_along_a_vector(server: Server, reference: Reference, op: Any, preserve_norm: bool, **more: Any) -> None:
    """Ablate, set or cap a component at two layers."""
    entry = {"vector": "everywhere", "op": op, "layers": [1, 3], "preserve_norm": preserve_norm}
    entry |= {"set": {"strength": 20}, "cap": {"min": -2, "max": 1}}.get(op, {})
    values = {1: 20.0, 3: 20.0} if op == "set" else {1: 1.0, 3: 1.0}
    bounds = {1: (-2.0, 1.0), 3: (-2.0, 1.0)} if op == "cap" else {}
    edit = Edit("v", everywhere(server), values, "all", op=op, bounds=bounds, preserve_norm=preserve_norm)
    choice = check(server, reference, entry, Plan((edit,)), **more)
    assert (choice["steering"][0]["op"], choice["steering"][0]["layers"]) == (op, [1, 3])


def check_clamp(server: Server, reference: Reference, op: Any) -> None:
    """Clamp a feature, or only raise it."""
    direction, reader = feature(server, 5)
    entry = {"sae": "random-l2", "feature": 5, "op": op, "strength": 4, "unit": "raw", "positions": "generation"}
    edit = Edit("random-l2", direction, {2: 4.0}, "generation", op=op, source="sae", feature=5, reader=reader)
    check(server, reference, entry, Plan((edit,)))


def check_gate(server: Server, reference: Reference, scope: Any) -> None:
    """Add where a probe says so."""
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
