"""What a request says of an edit against the edit that the engine gets, and against the receipt."""

import math
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import (
    D_MODEL,
    HONEST_ROWS,
    RISK_ROWS,
    SAE_BIASES,
    SAE_DECODER,
    SAE_ENCODER,
    TRUTH_ROWS,
)
from api_support.client import HONEST, Client
from api_support.client import N_PROMPT as P
from api_support.fake_engine import FakeServer, stream_at
from api_support.reference import logit, sigmoid

from pilothouse.core.edits import Edit, Rule
from pilothouse.core.plans import Plan

N = 12


def plan_of(server: FakeServer) -> Plan:
    return server.sessions[-1].plan


async def edit_of(server: FakeServer, client: Client, **entry: Any) -> tuple[Edit, dict[str, Any]]:
    choice = await client.choice(steering=[entry], max_tokens=N)
    (found,), (receipt,) = plan_of(server).edits, choice["steering"]
    return found, receipt


@pytest.mark.parametrize(
    ("entry", "amounts"),
    [
        ({"op": "ablate"}, (0.0, 1.0, 0.0, 0.0)),
        ({"op": "ablate", "strength": 0.5}, (0.0, 0.5, 0.0, 0.0)),
        ({"op": "set", "strength": -3}, (0.0, 1.0, -3.0, -3.0)),
        ({"op": "set", "strength": 0.5, "unit": "resid_norm"}, (0.0, 1.0, 10.0, 10.0)),
        ({"op": "cap", "min": -1, "max": 2}, (0.0, 1.0, -1.0, 2.0)),
        ({"op": "cap", "max": 0.1, "unit": "resid_norm"}, (0.0, 1.0, -math.inf, 2.0)),
        ({"op": "cap", "min": 4}, (0.0, 1.0, 4.0, math.inf)),
    ],
    ids=str,
)
async def test_operations_on_a_component_read_and_write_along_the_unit_vector(
    server: FakeServer, client: Client, entry: dict[str, Any], amounts: tuple[float, ...]
) -> None:
    edit, receipt = await edit_of(server, client, **HONEST, **entry)
    length = float(np.linalg.norm(HONEST_ROWS["layer.2"].astype(np.float64)))
    rule = edit.rule(2)
    assert rule[:4] == pytest.approx(amounts)
    assert rule[4:] == pytest.approx((0.0, -math.inf, 1 / length, 1 / length))
    assert (receipt["op"], receipt["layers"]) == (entry["op"], [2])
    if entry["op"] == "cap":
        low, high = (None if math.isinf(x) else pytest.approx(x) for x in amounts[2:])
        assert (receipt["min"], receipt["max"]) == ({"2": low}, {"2": high})


@pytest.mark.parametrize(
    ("entry", "low", "high"),
    [
        ({"op": "clamp", "strength": 2}, 10.0, 10.0),
        ({"op": "clamp", "strength": 2, "unit": "raw"}, 2.0, 2.0),
        ({"op": "min_clamp", "strength": 0.5, "unit": "max_act"}, 2.5, math.inf),
    ],
)
async def test_clamps_read_the_encoder_with_its_bias_and_that_of_the_decoder(
    server: FakeServer, client: Client, entry: dict[str, Any], low: float, high: float
) -> None:
    edit, receipt = await edit_of(server, client, sae="features", feature=2, **entry)
    assert edit.rule(2)[:4] == (0.0, 1.0, low, high)
    assert edit.reader is not None
    np.testing.assert_array_equal(edit.direction.layers[2], SAE_DECODER[2])
    stream = np.random.default_rng(1).standard_normal(D_MODEL).astype(np.float32)
    seen = float(stream @ edit.reader.direction.layers[2]) + edit.reader.bias
    expected = float((stream - SAE_BIASES[:D_MODEL]) @ SAE_ENCODER[:, 2] + SAE_BIASES[D_MODEL + 2])
    assert seen == pytest.approx(expected, abs=1e-5)
    assert edit.reader.threshold == 0.0
    assert receipt["coefficients"] == {"2": low}


async def test_preserve_norm_reaches_the_engine_and_the_receipt(server: FakeServer, client: Client) -> None:
    edit, receipt = await edit_of(server, client, **HONEST, preserve_norm=True)
    assert edit.preserve_norm
    assert not edit.summable
    assert receipt["preserve_norm"] is True
    assert edit.rule(2) == Rule(alpha=1.0)


@pytest.mark.parametrize("when", ["above", "below"])
@pytest.mark.parametrize("positions", ["all", "generation"])
async def test_a_gate_is_open_where_the_token_score_is_beyond_the_threshold(
    server: FakeServer, client: Client, when: str, positions: str
) -> None:
    gate = {"probe": "risk", "when": when, "threshold": 0.7}
    edit, receipt = await edit_of(server, client, **HONEST, positions=positions, gate=gate)
    scores = [sigmoid(logit(RISK_ROWS, lambda p, layer: stream_at(0, p, layer), p)) for p in range(P + N - 1)]
    opened = [p for p, score in enumerate(scores) if (score > 0.7 if when == "above" else score < 0.7)]
    opened = [p for p in opened if p >= (P - 1 if positions == "generation" else 1)]
    assert 0 < len(opened) < P + N - 1
    assert receipt["tokens_edited"] == len(opened)
    expected = {"probe": "risk", "when": when, "scope": "token", "action": "steer", "first_open": opened[0]}
    assert receipt["gate"] == expected
    assert [readout.label for readout in plan_of(server).readouts] == ["risk"]
    assert edit.gate is not None


async def test_a_latched_gate_opens_behind_the_first_token_beyond_it(server: FakeServer, client: Client) -> None:
    gate = {"probe": "truthfulness", "when": "below", "threshold": 0.02, "scope": "rest"}
    _, receipt = await edit_of(server, client, **HONEST, gate=gate)
    scores = [sigmoid(logit(TRUTH_ROWS, lambda p, layer: stream_at(0, p, layer), p)) for p in range(P + N - 1)]
    first = next(p for p, score in enumerate(scores) if p and score < 0.02)
    assert receipt["gate"]["first_open"] == max(first + 1, P)
    assert receipt["tokens_edited"] == P + N - 1 - max(first + 1, P)


async def test_a_gate_shares_the_readout_of_a_probe_that_is_shown(server: FakeServer, client: Client) -> None:
    gate = {"probe": "risk", "when": "above", "threshold": 0.7}
    choice = await client.choice(steering=[{**HONEST, "gate": gate}], probes=["early", "risk"], max_tokens=N)
    assert [readout.label for readout in plan_of(server).readouts] == ["early", "risk"]
    assert set(choice["probes"]) == {"early", "risk"}
    assert "prompt_tokens" not in choice["probes"]["risk"]


async def test_a_probe_that_only_a_gate_asks_for_is_not_shown(client: Client) -> None:
    gate = {"probe": "risk", "when": "above", "threshold": 0.7}
    choice = await client.choice(steering=[{**HONEST, "gate": gate}], probes=["early"], max_tokens=N)
    assert set(choice["probes"]) == {"early"}


async def test_a_gate_that_stops_edits_nothing(server: FakeServer, client: Client) -> None:
    gate = {"probe": "early", "when": "above", "threshold": 0.99, "action": "stop"}
    edit, receipt = await edit_of(server, client, **HONEST, gate=gate)
    assert edit.is_identity()
    assert receipt["tokens_edited"] == 0
    assert receipt["gate"]["action"] == "stop"


async def test_a_gate_whose_readouts_are_lost_is_an_error(client: Client) -> None:
    gate = {"probe": "risk", "when": "above", "threshold": 0.7}
    for action in ("steer", "stop"):
        entry = {**HONEST, "gate": {**gate, "action": action}}
        response = await client.chat(steering=[entry], max_tokens=N, fake={"lost": [2]})
        assert response.status_code == 500
        assert "scored 1 token too few" in response.json()["error"]["message"]


async def test_capabilities_list_every_operation(client: Client) -> None:
    found = (await client.http.get("/v1/capabilities")).json()
    assert found["operations"] == ["add", "ablate", "set", "cap", "clamp", "min_clamp"]
    assert found["limits"]["chain_steps"] == 4


async def test_a_feature_is_watched_like_a_probe(server: FakeServer, client: Client) -> None:
    names = [{"sae": "features", "feature": 3}, "risk"]
    choice = await client.choice(probes={"names": names, "tokens": True}, max_tokens=N)
    assert set(choice["probes"]) == {"features/3", "risk"}
    found = choice["probes"]["features/3"]
    logits = []
    for position in range(P, P + N - 1):
        stream = stream_at(0, position, 2).astype(np.float64)
        logits.append(float((stream - SAE_BIASES[:D_MODEL]) @ SAE_ENCODER[:, 3] + SAE_BIASES[D_MODEL + 3]))
    activations = [max(logit, 0.0) / 0.5 for logit in logits]
    assert max(activations) > 0.1
    assert [entry["logit"] for entry in found["tokens"][:-1]] == pytest.approx(logits, abs=1e-5)
    assert [entry["score"] for entry in found["tokens"][:-1]] == pytest.approx(activations, abs=1e-5)
    assert found["score"] == pytest.approx(max(activations), abs=1e-5)
    assert (found["label"], found["flagged"], found["aggregate"]) == ("active", True, "max")
