"""vLLM's endpoints that change a running engine: behind them nothing is steered, read or cached as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support.harness import Reference
from offline_support.calls import LONG, fine_tuned
from serve_support.operations import BODY, everywhere
from serve_support.server import Server, serving

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit
from pilothouse.core.plans import Plan, Readout
from pilothouse.harbor.paths import model_dir, probes_dir
from pilothouse.probing import load_probes

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

PROBE = load_probes(probes_dir())["truthfulness"]
STEERING = {"vector": "everywhere", "strength": 0.3, "layers": [1]}
FLAGS = ("--enforce-eager", "--block-size", "32", "--enable-prompt-tokens-details")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("endpoints"), *FLAGS, VLLM_SERVER_DEV_MODE="1") as running:
        yield running


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tuned(tmp_path_factory.mktemp("reload") / "harbor")


def ask(server: Server) -> tuple[dict[str, Any], int]:
    """The same steered and read request; its choice, and how much of its prompt was cached."""
    probes = {"names": ["truthfulness"], "tokens": True, "prompt": True}
    answer = server.post("/v1/completions", {**BODY, "prompt": LONG, "steering": [STEERING], "probes": probes})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0], (body["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def reset(server: Server) -> None:
    assert server.post("/reset_prefix_cache", {}).json()["success"]


def expected(server: Server, choice: dict[str, Any], reference: Reference) -> tuple[Any, Any]:
    """Log-probabilities of the generated tokens, and the probe's logit at every position."""
    edit = Edit("everywhere", Direction({1: everywhere(server).layers[1]}), {1: 0.3}, "all")
    plan = Plan((edit,), (Readout("truthfulness", PROBE.direction),), prompt_scores=True)
    table, raw = reference.run(choice["prompt_token_ids"], choice["token_ids"], plan)
    return [table[i, token] for i, token in enumerate(choice["token_ids"])], PROBE.logits(raw[:, 0])


def check_steering(server: Server, choice: dict[str, Any], reference: Reference) -> None:
    logprobs, _ = expected(server, choice, reference)
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], logprobs, atol=5e-4)


def check_scores(server: Server, choice: dict[str, Any], reference: Reference) -> None:
    _, logits = expected(server, choice, reference)
    shown = choice["probes"]["truthfulness"]
    found = [entry["logit"] for entry in (*shown["prompt_tokens"][1:], *shown["tokens"][:-1])]
    np.testing.assert_allclose(found, logits[1:-1], atol=2e-3)


CHECKS = {"steering": check_steering, "no stale scores": check_scores}


@pytest.mark.cell("ways", "prefix-cache reset, HTTP", "{check}")
@pytest.mark.parametrize("check", CHECKS)
def test_behind_a_reset(server: Server, reference: Reference, check: str) -> None:
    ask(server)
    assert ask(server)[1] > 0
    reset(server)
    choice, cached = ask(server)
    assert cached == 0
    CHECKS[check](server, choice, reference)


@pytest.mark.cell("ways", "weight reload, HTTP", "{check}")
@pytest.mark.parametrize("check", CHECKS)
def test_behind_a_reload(server: Server, reference: Reference, other_weights: Path, check: str) -> None:
    CHECKS[check](server, ask(server)[0], reference)
    try:
        _reload(server, other_weights)
        changed = Reference(other_weights)
        for warm in (False, True):
            choice, cached = ask(server)
            assert (cached > 0) == warm
            CHECKS[check](server, choice, changed)
        with pytest.raises(AssertionError):
            CHECKS[check](server, choice, reference)
    finally:
        _reload(server, model_dir())


def _reload(server: Server, weights: Path) -> None:
    answer = server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}})
    assert answer.status_code == 200, answer.text
    reset(server)


@pytest.mark.cell("ways", "sleep mode, HTTP", "steering")
def test_a_server_that_cannot_sleep_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception) as failure, serving(tmp_path, *FLAGS, "--enable-sleep-mode"):
        pass
    said = "Sleep mode is not supported on current platform."
    assert said in str(failure.value)
    pytest.skip(said)
