"""The served embedded model against Hugging Face in float32, over HTTP, batched and compiled."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engine_support.harness import Reference
from serve_support.server import Server

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange, Positions
from pilothouse.core.plans import Plan, Readout
from pilothouse.harbor.paths import probes_dir, vectors_dir
from pilothouse.probing import load_probes
from pilothouse.steering import load_vectors

pytestmark = pytest.mark.engine

SELECTORS: list[tuple[Any, Positions]] = [
    ("all", "all"),
    ("prompt", "prompt"),
    ("generation", "generation"),
    ("last_prompt", "last_prompt"),
    ({"from": 2, "to": 6}, PositionRange(2, 6)),
    ({"from": -3, "to": 40}, PositionRange(-3, 40)),
]
QUESTIONS = ["capital of France", "the opposite of hot", "a young dog", "two plus three", "the month after May"]


def case(number: int, rng: np.random.Generator) -> tuple[dict[str, Any], Plan]:
    """A request and the plan it means: an inline vector of its own, sometimes a named one too."""
    layer = int(rng.integers(0, 6))
    row = (rng.normal(size=256) * 0.5).astype(np.float32)
    selector, positions = SELECTORS[number % len(SELECTORS)]
    inline = {"layers": {str(layer): base64.b64encode(row.tobytes()).decode()}}
    steering: list[dict[str, Any]] = [{"inline": inline, "strength": 1.5, "positions": selector}]
    edits = [Edit("inline", Direction({layer: row}), {layer: 1.5}, positions, source="inline")]
    if number % 3 == 0:
        honest = load_vectors(vectors_dir())["honest"]
        steering.append({"vector": "honest", "strength": -2.0, "positions": "generation"})
        edits.append(Edit("honest", honest.direction, dict.fromkeys(honest.default_layers, -2.0), "generation"))
    text = f"{'Well then. ' * (number % 4)}What is {QUESTIONS[number % 5]}?"
    body = {
        "model": "harbor",
        "prompt": text,
        "temperature": 0,
        "max_tokens": 4 + number % 9,
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "steering": steering,
        "probes": {"names": ["truthfulness"], "tokens": True, "prompt": number % 2 == 0},
    }
    probe = load_probes(probes_dir())["truthfulness"]
    return body, Plan(tuple(edits), (Readout("truthfulness", probe.direction),))


def test_mixed_batch_of_sixteen_equals_hugging_face(server: Server, reference: Reference) -> None:
    rng = np.random.default_rng(17)
    cases = [case(i, rng) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda c: server.post("/v1/completions", c[0]), cases))
    probe = load_probes(probes_dir())["truthfulness"]
    for (body, plan), answer in zip(cases, answers, strict=True):
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        prompt, generated = choice["prompt_token_ids"], choice["token_ids"]
        logprobs, raw = reference.run(prompt, generated, plan)
        expected = [float(logprobs[i, token]) for i, token in enumerate(generated)]
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=1e-4)
        logits = probe.logits(raw[:, 0])
        tolerance = 1e-4 * float(raw.std())
        found = choice["probes"]["truthfulness"]
        assert [entry["token_id"] for entry in found["tokens"]] == generated
        assert found["tokens"][-1]["logit"] is None
        measured = [entry["logit"] for entry in found["tokens"][:-1]]
        np.testing.assert_allclose(measured, logits[len(prompt) : -1], atol=tolerance)
        np.testing.assert_allclose(found["stats"]["prompt_end"], logits[len(prompt) - 1], atol=tolerance)
        if body["probes"]["prompt"]:
            entries = found["prompt_tokens"]
            assert entries[0]["logit"] is None
            scored = [entry["logit"] for entry in entries[1:]]
            np.testing.assert_allclose(scored, logits[1 : len(prompt)], atol=tolerance)


def test_sixty_four_distinct_plans_and_more_at_once(server: Server, reference: Reference) -> None:
    rng = np.random.default_rng(18)
    cases = [case(i, rng) for i in range(72)]
    with ThreadPoolExecutor(72) as pool:
        answers = list(pool.map(lambda c: server.post("/v1/completions", c[0]), cases))
    assert [answer.status_code for answer in answers] == [200] * 72
    for (_, plan), answer in list(zip(cases, answers, strict=True))[::6]:
        choice = answer.json()["choices"][0]
        logprobs, _ = reference.run(choice["prompt_token_ids"], choice["token_ids"], plan)
        expected = [float(logprobs[i, token]) for i, token in enumerate(choice["token_ids"])]
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=1e-4)


def test_a_sae_feature_is_its_decoder_row_times_its_maximal_activation(server: Server, reference: Reference) -> None:
    from safetensors.numpy import load_file

    feature = 7
    row = load_file(server.sae / "sae_weights.safetensors")["W_dec"][feature]
    peak = float(load_file(server.sae / "feature_stats.safetensors")["max_act"][feature])
    body = {
        "model": "harbor",
        "prompt": "What is the capital of Spain?",
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": 0,
        "return_token_ids": True,
        "steering": [{"sae": "random-l2", "feature": feature, "strength": 0.5}],
    }
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert choice["steering"][0]["coefficients"]["2"] == pytest.approx(0.5 * peak)
    plan = Plan((Edit("random-l2", Direction({2: row}), {2: 0.5 * peak}, "all", source="sae", feature=feature),))
    logprobs, _ = reference.run(choice["prompt_token_ids"], choice["token_ids"], plan)
    expected = [float(logprobs[i, token]) for i, token in enumerate(choice["token_ids"])]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=1e-4)


def test_steered_and_plain_in_any_order_equal_a_cold_cache(server: Server) -> None:
    prompt = "The long road to the harbor. " * 40

    def run(salt: str, steered: bool) -> list[float]:
        """Log-probabilities under a cache of its own for each salt."""
        body: dict[str, Any] = {"model": "harbor", "prompt": prompt, "temperature": 0, "max_tokens": 8, "logprobs": 0}
        body["cache_salt"] = salt
        if steered:
            body["steering"] = [{"vector": "everywhere", "strength": 0.3}]
        answer = server.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        logprobs: list[float] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
        return logprobs

    cold = {steered: run(f"cold {steered}", steered) for steered in (True, False)}
    assert not np.allclose(cold[True], cold[False], atol=1e-2)
    for salt, order in (("steered first", [True, False, True]), ("plain first", [False, True, False])):
        for steered in order:
            np.testing.assert_allclose(run(salt, steered), cold[steered], atol=1e-4)
