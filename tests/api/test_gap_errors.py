"""A gap is loud: an error on that request, streamed or not, a stored record that says so, and a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from api_support.artefacts import write_all
from api_support.client import HEADERS, PROMPT, Client, assert_refused, connect, strict_json
from api_support.fake_engine import CHAT, COMPLETIONS, FakeServer

CALM = {"steering": [{"vector": "calm"}]}
RISK = {"probes": ["risk"]}
NOT_STEERED, NOT_PROBED = "the response was not steered as asked", "the response was not probed as asked"
UNKNOWN = "what became of the rest is unknown"

# (what is asked for, the engine's fault, the kind of gap, the message)
FAULTS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (CALM, {"unedited": 1}, "edited", f"the engine edited 1 token too few: {NOT_STEERED}"),
    (CALM, {"unedited": 3}, "edited", f"the engine edited 3 tokens too few: {NOT_STEERED}"),
    (CALM, {"dropped": [2]}, "forwarded", f"the engine reported 1 token too few: {UNKNOWN}"),
    (CALM, {"deaf": True}, "forwarded", f"the engine reported 6 tokens too few: {UNKNOWN}"),
    (RISK, {"dropped": [0]}, "forwarded", f"the engine reported 1 token too few: {UNKNOWN}"),
    (RISK, {"dropped": [1, 5]}, "forwarded", f"the engine reported 2 tokens too few: {UNKNOWN}"),
    (RISK, {"deaf": True}, "forwarded", f"the engine reported 6 tokens too few: {UNKNOWN}"),
    (RISK, {"lost": [1]}, "scored", f"the engine scored 1 token too few: {NOT_PROBED}"),
    (RISK, {"lost": [-1, 0, 4]}, "scored", f"the engine scored 3 tokens too few: {NOT_PROBED}"),
    (
        {"probes": {"names": ["risk"], "tokens": True, "prompt": True}},
        {"cached": 4, "forgotten": True},
        "scored",
        f"the engine scored 4 tokens too few: {NOT_PROBED}",
    ),
]


async def send(client: Client, route: str, **body: Any) -> httpx.Response:
    prompt = {"messages": [{"role": "user", "content": PROMPT}]} if route == CHAT else {"prompt": PROMPT}
    return await client.http.post(route, json={**prompt, **body})


async def record_of(client: Client, route: str, user: str) -> dict[str, Any]:
    prefix = "chatcmpl" if route == CHAT else "cmpl"
    record = strict_json((await client.http.get(f"/v1/probes/results/{prefix}-{user}", headers=HEADERS)).content)
    assert isinstance(record, dict)
    return record


def gaps_counted(server: FakeServer) -> dict[str, float]:
    """The counter of gaps by kind."""
    return {
        sample.labels["kind"]: sample.value
        for family in server.metrics_registry.collect()
        for sample in family.samples
        if sample.name == "pilothouse_engine_gaps_total"
    }


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("asked", "fault", "kind", "message"), FAULTS, ids=lambda v: ascii(v)[:40])
async def test_a_gap_is_an_error_of_the_request(
    server: FakeServer,
    client: Client,
    asked: dict[str, Any],
    fault: dict[str, Any],
    kind: str,
    message: str,
    route: str,
    n: int,
) -> None:
    fake = {**fault, "faulty": n - 1}
    error = assert_refused(await send(client, route, **asked, n=n, user="me", fake=fake), None, 500)
    assert (error["type"], error["message"]) == ("InternalServerError", message)
    record = await record_of(client, route, "me")
    assert record["error"] == message
    check_choices(record["choices"], n - 1, message)
    assert gaps_counted(server) == {kind: 1}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("asked", "fault", "kind", "message"), FAULTS, ids=lambda v: ascii(v)[:40])
async def test_a_gap_ends_a_stream_in_the_place_of_its_finish(
    server: FakeServer,
    client: Client,
    asked: dict[str, Any],
    fault: dict[str, Any],
    kind: str,
    message: str,
    route: str,
    n: int,
) -> None:
    fake = {**fault, "faulty": n - 1}
    response = await send(client, route, **asked, n=n, stream=True, user="me", fake=fake)
    assert response.status_code == 200
    *events, failed, done = [event for event in response.text.split("\n\n") if event]
    assert done == "data: [DONE]"
    assert failed.startswith('data: {"error": {')
    assert strict_json(failed.removeprefix("data: ")) == {
        "error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}
    }
    finished = [c["index"] for e in events for c in strict_json(e[6:])["choices"] if c["finish_reason"] is not None]
    assert finished == list(range(n - 1)), "the finish of the faulty choice is not sent"
    record = await record_of(client, route, "me")
    assert record["error"] == message
    check_choices(record["choices"], n - 1, message)
    assert gaps_counted(server) == {kind: 1}


def check_choices(choices: list[dict[str, Any]], faulty: int, message: str) -> None:
    """What the record says of each choice: nothing is wrong with any but the faulty one."""
    for choice in choices:
        wrong = choice["index"] == faulty
        for receipt in choice.get("steering", []):
            assert receipt.get("error") == (message if wrong else None)
        for probe in choice.get("probes", {}).values():
            assert probe.get("reason") == ("engine_gap" if wrong else None)
            assert (probe["score"] is None) is wrong
            assert not (wrong and probe["flagged"])


async def test_tokens_of_a_record_say_which_are_missing(client: Client) -> None:
    probes = {"names": ["risk"], "tokens": True, "prompt": True}
    await client.chat(probes=probes, user="me", fake={"lost": [1], "poisoned": [3], "cached": 3, "forgotten": True})
    (choice,) = (await record_of(client, CHAT, "me"))["choices"]
    shown = choice["probes"]["risk"]
    assert [e.get("reason") for e in shown["tokens"]] == [None, "engine_gap", None, "not_finite", None, None]
    assert [e.get("reason") for e in shown["prompt_tokens"]][:5] == ["bos", "engine_gap", "engine_gap", None, None]


async def test_a_stream_fails_as_soon_as_one_choice_has_a_gap(server: FakeServer, client: Client) -> None:
    await client.events(**RISK, n=2, user="me", fake={"lost": [1], "faulty": 0, "late": 9})
    record = await record_of(client, CHAT, "me")
    assert [c["finish_reason"] for c in record["choices"]] == ["length", None]
    assert [c["probes"]["risk"]["reason"] for c in record["choices"]] == ["engine_gap", "error"]
    assert gaps_counted(server) == {"scored": 1}


async def test_every_gap_of_a_choice_is_said_and_counted(server: FakeServer, client: Client) -> None:
    response = await client.chat(**CALM, **RISK, n=2, fake={"unedited": 2, "lost": [1], "dropped": [4]})
    message = assert_refused(response, None, 500)["message"]
    assert message.split("; ") == [
        f"the engine reported 1 token too few: {UNKNOWN}",
        f"the engine edited 2 tokens too few: {NOT_STEERED}",
        f"the engine scored 1 token too few: {NOT_PROBED}",
    ]
    assert gaps_counted(server) == {"forwarded": 2, "edited": 2, "scored": 2}


async def test_a_gap_is_logged_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    await client.chat(**CALM, user="me", fake={"unedited": 2})
    assert caplog.text.count("2 tokens too few") == 1
    assert "chatcmpl-me" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fake", [{}, {"ahead": True}, {"late": 3}, {"per_step": 4}, {"cached": 9}, {"preempted": [2, 4]}, {"poisoned": [1]}]
)
async def test_a_healthy_engine_is_not_blamed(
    server: FakeServer, client: Client, fake: dict[str, Any], stream: bool
) -> None:
    for body in ({**CALM, **RISK}, {"probes": {"names": ["risk"], "tokens": True, "prompt": True}}):
        response = await client.chat(**body, n=2, stream=stream, fake=fake)
        assert response.status_code == 200
        assert '"error"' not in response.text
    assert gaps_counted(server) == {}


async def test_a_client_that_leaves_is_owed_nothing(server: FakeServer, client: Client) -> None:
    await client.chat(**RISK, stream=True, user="gone", fake={"abort": 2, "lost": [0]})
    record = await record_of(client, CHAT, "gone")
    assert record["error"] == "aborted"
    assert gaps_counted(server) == {}


async def test_a_strength_of_zero_owes_no_edits_but_must_have_run(client: Client) -> None:
    nothing = {"steering": [{"vector": "calm", "strength": 0}]}
    assert (await client.chat(**nothing, fake={"unedited": 2})).status_code == 200
    assert_refused(await client.chat(**nothing, fake={"deaf": True}), None, 500)


# (what the client asks for, the engine's fault, the kinds of gaps, whether the client is owed something)
WATCHED: list[tuple[dict[str, Any], dict[str, Any], set[str], bool]] = [
    ({}, {"lost": [1]}, {"scored"}, False),
    ({}, {"dropped": [1]}, {"forwarded"}, False),
    ({}, {"deaf": True}, {"forwarded"}, False),
    ({"steering": []}, {"deaf": True}, {"forwarded"}, False),
    (CALM, {"lost": [1]}, {"scored"}, False),
    (CALM, {"lost": [1], "unedited": 1}, {"scored", "edited"}, True),
    (CALM, {"deaf": True}, {"forwarded"}, True),
    ({"probes": {"tokens": True}}, {"lost": [1]}, {"scored"}, True),
    ({"probes": ["risk"]}, {"lost": [1]}, {"scored"}, True),
    ({"probes": []}, {"deaf": True}, set(), False),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("asked", "fault", "kinds", "owed"), WATCHED, ids=lambda v: ascii(v)[:40])
async def test_probes_that_the_client_did_not_ask_for_break_nothing(
    tmp_path: Path, asked: dict[str, Any], fault: dict[str, Any], kinds: set[str], owed: bool, stream: bool
) -> None:
    server = FakeServer(write_all(tmp_path, default_probes=("risk", "early")))
    async with connect(server) as http:
        client = Client(http)
        response = await client.chat(**asked, stream=stream, user="me", fake=fault)
        failed = '"InternalServerError"' in response.text
        assert failed is owed
        assert response.status_code == (500 if owed and not stream else 200)
        assert gaps_counted(server) == dict.fromkeys(kinds, 1)
        if not kinds:
            return
        record = await record_of(client, CHAT, "me")
        assert (record["error"] is not None) is owed
        if owed:
            assert NOT_PROBED not in record["error"] or "probes" in asked
            return
        (choice,) = record["choices"]
        for shown in choice["probes"].values():
            assert (shown["score"], shown["reason"], shown["flagged"]) == (None, "engine_gap", False)
        assert all("error" not in receipt for receipt in choice.get("steering", []))
        assert '"reason":"engine_gap"' in response.text.replace('": "', '":"')
    labels = {"model_name": "tiny", "probe": "risk", "reason": "engine_gap"}
    assert server.metrics_registry.get_sample_value("pilothouse_probe_unscored_total", labels) == 1
