"""Servers with pipeline stages, with drafts and with adapters: what the engine's tests show, as clients see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support.harness import Reference
from engine_support.lora import make_adapter
from serve_support.operations import BODY, check_along_a_vector, check_clamp, check_gate
from serve_support.server import Server, serving
from serve_support.topologies import counted

from pilothouse.harbor.paths import model_dir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]


def rest_gate(layer: int) -> dict[str, Any]:
    """An edit at `layer` that waits for the probe of truth, which reads a later layer than 1."""
    gate = {"probe": "truthfulness", "when": "above", "threshold": 0.1, "scope": "rest"}
    return {"vector": "everywhere", "strength": 0.3, "layers": [layer], "gate": gate}


def refusal(server: Server, entry: dict[str, Any]) -> str:
    """Why the server does not take this edit."""
    answer = server.post("/v1/completions", {**BODY, "steering": [entry]})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "steering[0].gate.scope"
    return str(error["message"])


def test_two_pipeline_stages_answer_as_one(tmp_path: Path, reference: Reference) -> None:
    with serving(tmp_path, "--pipeline-parallel-size", "2", VLLM_CPU_OMP_THREADS_BIND="0|1") as server:
        assert "differs from the reference by" in server.log.read_text(errors="replace")
        for op in ("ablate", "set", "cap"):
            check_along_a_vector(server, reference, op, preserve_norm=True)
        check_clamp(server, reference, "clamp")
        for scope in ("token", "rest"):
            check_gate(server, reference, scope)
        assert "on pipeline stage 1, for an edit of layer 1 on stage 0" in refusal(server, rest_gate(1))


def test_drafts_change_no_answer(tmp_path: Path, reference: Reference) -> None:
    drafts = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}'
    with serving(tmp_path, "--speculative-config", drafts) as server:
        assert "differs from the reference by" in server.log.read_text(errors="replace")
        for op in ("ablate", "set", "cap"):
            check_along_a_vector(server, reference, op, preserve_norm=True)
        check_gate(server, reference, "token")
        assert "speculative decoding" in refusal(server, rest_gate(5))
        text = "A cat is a cat is a cat is a cat is a"
        answer = server.post("/v1/completions", {**BODY, "prompt": text, "max_tokens": 24, "probes": ["truthfulness"]})
        (choice,) = answer.json()["choices"]
        assert choice["probes"]["truthfulness"]["n_scored"] == len(choice["token_ids"]) - 1
        assert counted(server, "vllm:spec_decode_num_accepted_tokens_total")


def test_each_adapter_is_steered_and_the_base_model_is_itself(tmp_path: Path, reference: Reference) -> None:
    adapter, merged = make_adapter(model_dir(), tmp_path, 1)
    flags = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"one={adapter}")
    with serving(tmp_path, *flags) as server:
        assert "differs from the reference by" in server.log.read_text(errors="replace")
        adapted = Reference(merged)
        for _ in ("cold", "warm"):
            check_along_a_vector(server, reference, "set", preserve_norm=False)
            check_along_a_vector(server, adapted, "set", preserve_norm=False, model="one")
        answers = [server.post("/v1/completions", {**BODY, "model": name}).json() for name in ("harbor", "one")]
        for answer, expected in zip(answers, (reference, adapted), strict=True):
            (choice,) = answer["choices"]
            logprobs, _ = expected.run(choice["prompt_token_ids"], choice["token_ids"], None)
            found = [float(logprobs[i, token]) for i, token in enumerate(choice["token_ids"])]
            np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], found, atol=5e-4)
        assert answers[0]["choices"][0]["token_ids"] != answers[1]["choices"][0]["token_ids"]
        ours = [line for line in server.get("/metrics").text.splitlines() if line.startswith("pilothouse_steering")]
        assert any('model_name="harbor"' in line for line in ours)
        assert not any('model_name="one"' in line for line in ours), "adapters come and go; labels must not"
