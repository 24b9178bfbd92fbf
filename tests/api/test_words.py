"""`level` and `reasons` over HTTP, against the tokens of the same response."""

import json
from pathlib import Path
from typing import Any

import pytest
from api_support.artefacts import RISK, RISK_ROWS, TRUTH, artefact, write_all
from api_support.client import HEADERS, Client, connect, strict_json
from api_support.fake_engine import FakeServer

ALL = ["truthfulness", "risk", "early"]


def level(confidence: float) -> str:
    bounds = {"high": 0.9, "moderate": 0.7, "low": 0.5}
    return next((name for name, bound in bounds.items() if confidence >= bound), "very low")


def worst_tokens(shown: dict[str, Any]) -> list[dict[str, Any]]:
    """The reasons of a choice whose tokens are listed, by their definition."""
    sign = 1 if shown["alarm"] == "high" else -1
    found = [
        {"token": entry["token"], "index": j, "score": entry["score"], "past": past}
        for j, entry in enumerate(shown["tokens"])
        if entry["score"] is not None and (past := sign * (entry["score"] - shown["threshold"])) > 0
    ]
    return sorted(found, key=lambda reason: -reason["past"])[:5]


async def many(client: Client, **body: Any) -> list[dict[str, Any]]:
    """Choices of several requests, among them flagged ones and others."""
    prompts = [f"{'x' * i}?" for i in range(1, 9)]
    response = await client.complete(prompt=prompts, n=2, max_tokens=24, **body)
    return list(strict_json(response.content)["choices"])


async def test_every_probe_has_its_level_and_the_flagged_ones_their_reasons(client: Client) -> None:
    seen = {(name, flagged): 0 for name in ALL for flagged in (True, False)}
    levels = set()
    for choice in await many(client, probes={"names": ALL, "tokens": True}):
        for name, shown in choice["probes"].items():
            confidence = 1 - shown["score"] if name == "risk" else shown["score"]
            assert shown["level"] == level(confidence)
            levels.add(shown["level"])
            seen[name, shown["flagged"]] += 1
            if not shown["flagged"]:
                assert shown["reasons"] == []
            elif name == "early":
                past = pytest.approx(shown["threshold"] - shown["score"])
                assert shown["reasons"] == [{"prompt_end": True, "score": shown["score"], "past": past}]
            else:
                assert shown["reasons"] == [
                    {**reason, "past": pytest.approx(reason["past"])} for reason in worst_tokens(shown)
                ]
                assert 1 <= len(shown["reasons"]) <= 5
    assert levels == {"high", "moderate", "low", "very low"}
    flagged = {name for (name, past), count in seen.items() if past and count}
    assert flagged == set(ALL), "each is seen at least once"


async def test_reasons_are_there_without_tokens_and_on_the_finish_chunk(client: Client) -> None:
    body: dict[str, Any] = {"probes": ALL, "max_tokens": 24}
    choice = await client.choice(**body)
    assert choice["probes"]["risk"]["reasons"]
    assert all("tokens" not in shown for shown in choice["probes"].values())
    assert (await client.chunks(**body))[-1]["probes"] == choice["probes"]


async def test_records_name_no_tokens_unless_they_were_asked_for(client: Client) -> None:
    found = {}
    for tokens in (False, True):
        user = f"tokens-{tokens}".lower()
        choice = await client.choice(user=user, probes={"names": ALL, "tokens": tokens}, max_tokens=24)
        answer = await client.http.get(f"/v1/probes/results/chatcmpl-{user}", headers=HEADERS)
        found[tokens] = strict_json(answer.content)["choices"][0]["probes"], choice["probes"]
    kept, said = found[True]
    assert kept == said
    kept, said = found[False]
    assert any(reason["token"] for shown in said.values() for reason in shown["reasons"] if "token" in reason)
    assert '"token"' not in json.dumps(kept)
    for name, shown in kept.items():
        bare = [{k: v for k, v in reason.items() if k != "token"} for reason in said[name]["reasons"]]
        assert shown == {**said[name], "reasons": bare}


@pytest.mark.parametrize("body", [{"max_tokens": 1}, {"max_tokens": 3, "fake": {"poisoned": [-1, 0, 1, 2]}}])
async def test_what_has_no_score_has_no_level_and_no_reasons(client: Client, body: dict[str, Any]) -> None:
    shown = (await client.choice(probes=["risk"], **body))["probes"]["risk"]
    assert (shown["score"], shown["level"], shown["reasons"]) == (None, None, [])


async def test_a_watched_feature_has_reasons_but_no_level(client: Client) -> None:
    body = {"names": [{"sae": "features", "feature": 1}], "tokens": True}
    shown = next(
        found
        for choice in await many(client, probes=body)
        if (found := choice["probes"]["features/1"])["flagged"] and found["score"] > 0
    )
    assert shown["level"] is None
    assert shown["reasons"][0]["score"] == pytest.approx(shown["score"])
    assert shown["reasons"] == worst_tokens(shown)


async def test_the_cards_own_words(tmp_path: Path) -> None:
    config = write_all(tmp_path)
    card = {**TRUTH, "levels": [{"name": "sicher", "at_least": 0.0001}, {"name": "unsicher"}]}
    (tmp_path / "probes" / "risk.safetensors").write_bytes(artefact("probe", {**card, "name": "risk"}, RISK_ROWS))
    async with connect(FakeServer(config)) as http:
        shown = (await Client(http).choice(probes=["risk"]))["probes"]["risk"]
        assert shown["level"] == "sicher"
        listed = (await http.get("/v1/probes/risk")).json()
    assert listed["levels"] == card["levels"]


async def test_levels_are_in_the_outcome(server: FakeServer, client: Client) -> None:
    choice = await client.choice(probes=["risk", "truthfulness"])
    session: Any = server.sessions[-1]
    (outcome,) = session._outcome(None).choices
    said = {probe.probe: probe.level for probe in outcome.probes}
    assert said == {name: shown["level"] for name, shown in choice["probes"].items()}
    assert None not in said.values()


async def test_an_upload_with_bad_levels_is_refused(client: Client) -> None:
    card = {**RISK, "name": "fresh", "levels": [{"name": "a"}, {"name": "b"}]}
    content = artefact("probe", card, RISK_ROWS)
    response = await client.http.post("/v1/probes", content=content, headers=HEADERS)
    assert response.status_code == 400
    assert "levels" in response.json()["error"]["message"]
