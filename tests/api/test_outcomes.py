"""What metrics, records and traces are told of a finished request, against the response and the artefacts' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import CALM_ROWS, HONEST_ROWS, write_all
from api_support.client import HONEST, INLINE, N_PROMPT, Client, connect
from api_support.fake_engine import FakeServer, encode, read_text

from pilothouse.core.config import RecordsConfig
from pilothouse.core.messages import StepCost
from pilothouse.core.records import GateOutcome, RequestOutcome

CALM = {"vector": "calm"}


def length(row: Any) -> float:
    return float(np.linalg.norm(row.astype(np.float64)))


async def outcome_of(server: FakeServer, client: Client, **body: Any) -> tuple[RequestOutcome, list[dict[str, Any]]]:
    """What the sinks were told of a chat, and the choices of its response."""
    response = await client.chat(**body)
    assert response.status_code == 200, response.text
    return server.outcomes[-1], response.json()["choices"]


async def test_numbers_of_the_request_and_its_plan(server: FakeServer, client: Client) -> None:
    told, choices = await outcome_of(server, client, probes=["risk"], steering=[HONEST, INLINE], n=2, max_tokens=6)
    assert (told.n_prompt, [choice.n_generated for choice in told.choices]) == (N_PROMPT, [6, 6])
    assert 0.0 < told.seconds < 60.0
    plan = server.sessions[-1].plan
    assert told.plan_digests == tuple(f"sha256:{edit.digest.hex()}" for edit in plan.edits)
    assert len(set(told.plan_digests)) == 2
    assert (told.text, told.error) == (None, None)
    for choice, shown in zip(told.choices, choices, strict=True):
        (probe,), entry = choice.probes, shown["probes"]["risk"]
        assert (probe.version, probe.n_expected, probe.n_scored) == (entry["version"], 5, entry["n_scored"])
        # Its aggregate is the maximum.
        assert probe.statistic == pytest.approx(entry["stats"]["max"])
        assert probe.activity is None


async def test_strength_in_lengths_of_the_stream(server: FakeServer, client: Client) -> None:
    norm = {1: 10.0, 2: 20.0}
    hard = {**HONEST, "layers": [1, 2], "strength": -3.0}
    told, _ = await outcome_of(server, client, steering=[{**HONEST, "strength": 0.5}, hard])
    pushes = {layer: 3.0 * length(HONEST_ROWS[f"layer.{layer}"]) / norm[layer] for layer in (1, 2)}
    assert told.strengths == {"honest": pytest.approx(max(pushes.values()))}
    # How long the stream is at layer 3 stands in no card; the self-test may have measured it.
    told, _ = await outcome_of(server, client, steering=[CALM, INLINE])
    assert told.strengths == {}
    server.app.state.pilothouse.strength_limit.lengths = {3: 4.0}
    told, _ = await outcome_of(server, client, steering=[CALM, INLINE, {**HONEST, "op": "ablate"}])
    ones = length(np.ones(8))
    assert told.strengths == pytest.approx({"calm": length(CALM_ROWS["layer.3"]) / 4, "adhoc": ones / 4})


@pytest.mark.parametrize("action", ["steer", "stop"])
async def test_gates_that_opened(server: FakeServer, client: Client, action: str) -> None:
    gate = {"probe": "risk", "when": "above", "threshold": 0.5, "action": action}
    never = {**gate, "threshold": 0.9999999}
    steering = [{**HONEST, "gate": gate}, {**CALM, "gate": never}]
    told, _ = await outcome_of(server, client, steering=steering, probes={"names": ["risk"], "tokens": True}, n=2)
    for number, choice in enumerate(told.choices):
        record = told.body[number]
        expected = [e for e in record["steering"] if e["gate"]["first_open"] is not None]
        assert [(g.vector, g.probe, g.action) for g in choice.gates] == [("honest", "risk", action)] * len(expected)
        if action == "steer":
            assert [g.n_open for g in choice.gates] == [e["tokens_edited"] for e in expected]
        assert all(g.n_open > 0 for g in choice.gates)
    assert any(choice.gates for choice in told.choices)
    assert isinstance(next(g for choice in told.choices for g in choice.gates), GateOutcome)


async def test_activity_of_a_watched_feature(server: FakeServer, client: Client) -> None:
    feature = {"sae": "features", "feature": 1}
    told, choices = await outcome_of(server, client, probes={"names": [feature], "tokens": True}, max_tokens=40)
    ((probe,),) = [choice.probes for choice in told.choices]
    (shown,) = choices[0]["probes"].values()
    scores = [entry["score"] for entry in shown["tokens"] if entry["score"] is not None]
    assert probe.activity is not None
    assert probe.activity.n_active == sum(score > 0 for score in scores) > 0
    assert probe.activity.total == pytest.approx(sum(scores))
    assert probe.n_expected == probe.n_scored == len(scores) == 39


async def test_texts_are_told_only_where_records_keep_them(tmp_path: Path) -> None:
    keeps = FakeServer(write_all(tmp_path, records=RecordsConfig(text=True)))
    async with connect(keeps) as http:
        response = await http.post("/v1/completions", json={"prompt": ["one", "two"], "n": 2, "probes": ["risk"]})
    assert response.status_code == 200, response.text
    (told,) = keeps.outcomes
    assert told.text is not None
    assert told.text["prompts"] == [read_text(encode("one")), read_text(encode("two"))]
    assert len(told.text["completions"]) == len(told.choices) == 4
    assert all(told.text["completions"])


async def test_what_steps_cost_is_added_up(server: FakeServer) -> None:
    for _ in range(2):
        server.extension.spent("tiny", StepCost(2, 0.25, 0.5))
    value = server.metrics_registry.get_sample_value
    assert value("pilothouse_steps_total", {"model_name": "tiny"}) == 4.0
    spent = [value("pilothouse_step_seconds_total", {"model_name": "tiny", "phase": p}) for p in ("prepare", "read")]
    assert spent == [0.5, 1.0]
