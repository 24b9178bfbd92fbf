"""Responses and Messages as vLLM's own handlers make them, ours around them: answers, streams, errors, records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_support.artefacts import write_all
from api_support.client import HEADERS, N_PROMPT, PROMPT, Client, strict_json
from api_support.fake_engine import FakeServer
from api_support.vllm_routes import FakeVllm
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from pilothouse.core.errors import BadRequest

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BOTH = {"names": ["truthfulness", "risk"], "tokens": True}
CALM = [{"vector": "calm"}]
MESSAGE = "the engine edited 2 tokens too few: the response was not steered as asked"

routes = pytest.mark.parametrize("path", [RESPONSES, MESSAGES])


@pytest.fixture
def vllm(server: FakeServer) -> FakeVllm:
    return FakeVllm(server)


@pytest_asyncio.fixture
async def http(vllm: FakeVllm) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(vllm.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://pilothouse") as made:
        yield made


def body_of(path: str, fake: dict[str, Any] | None = None, n: int = 6, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "tiny", **fields}
    if fake:
        body["vllm_xargs"] = {"fake": json.dumps(fake)}
    if path == RESPONSES:
        return {"input": PROMPT, "max_output_tokens": n, **body}
    return {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": n, **body}


async def whole(http: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    response = await http.post(path, json=body_of(path, **fields))
    assert response.status_code == 200, response.text
    found = strict_json(response.content)
    assert isinstance(found, dict)
    return found


async def events(http: httpx.AsyncClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    """What a stream's events say; each is called what it is."""
    response = await http.post(path, json=body_of(path, stream=True, **fields))
    assert response.status_code == 200, response.text
    found = []
    for event in response.text.split("\n\n")[:-1]:
        name, _, data = event.partition("\ndata: ")
        found.append(strict_json(data))
        assert name == f"event: {found[-1]['type']}"
    return found


async def record(http: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    found = strict_json((await http.get(f"/v1/probes/results/{response_id}", headers=HEADERS)).content)
    assert isinstance(found, dict)
    return found


def id_of(said: list[dict[str, Any]]) -> str:
    found = said[0].get("response") or said[0]["message"]
    return str(found["id"])


def outcome(event: dict[str, Any]) -> dict[str, Any]:
    """Where the event that ends an answer has our keys."""
    found: dict[str, Any] = event["response"] if event["type"] == "response.completed" else event
    return {key: found[key] for key in ("steering", "probes") if key in found}


@routes
@pytest.mark.parametrize("fake", [{}, {"per_step": 3}, {"late": 2}, {"per_step": 2, "ahead": True}])
async def test_an_answer_says_what_a_choice_of_a_chat_says(
    http: httpx.AsyncClient, client: Client, path: str, fake: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"probes": {**BOTH, "prompt": True}, "steering": [{"vector": "calm", "strength": 2}]}
    choice = await client.choice(fake=fake, **fields)
    answer = await whole(http, path, fake=fake, **fields)
    assert answer["steering"] == choice["steering"]
    # To the letter: nothing that is null is left out.
    assert answer["probes"] == choice["probes"]
    assert answer["probes"]["risk"]["tokens"][-1]["logit"] is None
    *_, end = [e for e in await events(http, path, fake=fake, **fields) if outcome(e)]
    assert outcome(end) == {key: choice[key] for key in ("steering", "probes")}
    kept = await record(http, answer["id"])
    assert {key: kept["choices"][0][key] for key in ("steering", "probes")} == outcome(end)
    assert (kept["route"], kept["error"], kept["steering"]) == (path, None, "calm")


@routes
@pytest.mark.parametrize("fake", [{}, {"late": 2}, {"late": 50}, {"per_step": 3}, {"per_step": 50}, {"poisoned": [2]}])
async def test_scores_stream_behind_their_tokens(http: httpx.AsyncClient, path: str, fake: dict[str, Any]) -> None:
    said = await events(http, path, fake=fake, n=11, probes=BOTH)
    (end,) = [e for e in said if outcome(e)]
    assert end["type"] in ("response.completed", "message_delta")
    for name, summary in outcome(end)["probes"].items():
        logits: list[float | None] = []
        announced = 0
        for event in said:
            if block := event.get("probe_scores", {}).get(name):
                assert event["type"].endswith("delta") or event is end
                assert block["start"] == len(logits)
                logits += block["logits"]
                assert event is end or (len(logits) <= announced and None not in block["logits"])
            delta = event.get("delta", "")
            announced += (delta if isinstance(delta, str) else delta.get("text", "")).count("«")
        assert logits == [token["logit"] for token in summary["tokens"]]
        assert announced == len(logits) == 11


@routes
async def test_scores_come_as_soon_as_they_may(http: httpx.AsyncClient, path: str) -> None:
    said = await events(http, path, n=5, probes=BOTH)
    starts = [e.get("probe_scores", {}).get("risk", {}).get("start") for e in said if "delta" in e["type"]]
    last = [e["probe_scores"]["risk"]["start"] for e in said if outcome(e)]
    assert starts[:5] == [None, 0, 1, 2, 3]
    assert last == [4]


@routes
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steering": [{"vector": "nobody"}]}, "steering[0].vector"),
        ({"steering": [{"vector": "calm", "colour": 1}]}, "steering[0].colour"),
        ({"probes": ["nobody"]}, "probes[0]"),
        ({"probe": []}, "probe"),
        ({"Steering": []}, "Steering"),
        # Known only once the prompt is.
        ({"steering": [{"vector": "calm", "positions": {"from": i, "to": 40 + i}} for i in range(8)]}, "steering"),
    ],
)
async def test_what_is_wrong_is_said_before_a_stream_begins(
    http: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        response = await http.post(path, json=body_of(path, stream=stream, **fields))
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "BadRequestError"
        if path == RESPONSES:
            assert (error["param"], error["code"]) == (param, 400)
        else:
            assert response.json()["type"] == "error"
            assert error["message"].startswith(f"{param}: ")


@routes
async def test_there_are_no_beams_to_be_searched(http: httpx.AsyncClient, path: str) -> None:
    answer = await whole(http, path, use_beam_search=True, steering=CALM)
    assert answer["steering"][0]["tokens_edited"] == N_PROMPT + 5


@routes
async def test_arguments_of_ours_cannot_be_forged(http: httpx.AsyncClient, path: str) -> None:
    for stream in (False, True):
        body = body_of(path, stream=stream) | {"vllm_xargs": {"pilothouse.plan": "forged"}}
        assert (await http.post(path, json=body)).status_code == 400


@routes
async def test_a_gap_is_an_error_and_not_an_answer(http: httpx.AsyncClient, path: str) -> None:
    fields: dict[str, Any] = {"fake": {"unedited": 2}, "steering": CALM}
    response = await http.post(path, json=body_of(path, **fields))
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["message"], error["type"]) == (MESSAGE, "InternalServerError")
    said = await events(http, path, **fields)
    end = said[-1]
    assert not any(map(outcome, said))
    if path == RESPONSES:
        assert end["type"] == "response.failed"
        assert end["response"]["status"] == "failed"
        assert end["response"]["error"] == {"code": "server_error", "message": MESSAGE}
        assert [e["sequence_number"] for e in said] == list(range(len(said)))
    else:
        assert end == {"type": "error", "error": {"type": "InternalServerError", "message": MESSAGE}}
    assert (await record(http, id_of(said)))["error"] == MESSAGE


@routes
async def test_a_gap_of_default_probes_breaks_nothing(tmp_path: Path, path: str) -> None:
    (tmp_path / "other").mkdir()
    fake = FakeVllm(FakeServer(write_all(tmp_path / "other", default_probes=("risk",))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(fake.app), base_url="http://x") as http:
        answer = await whole(http, path, fake={"lost": [1]})
    assert (answer["probes"]["risk"]["score"], answer["probes"]["risk"]["reason"]) == (None, "engine_gap")


@routes
async def test_an_engine_that_dies_ends_the_stream_with_an_error(http: httpx.AsyncClient, path: str) -> None:
    said = await events(http, path, fake={"fails": True}, probes=BOTH)
    assert said[-1]["type"] in ("response.failed", "error")
    assert (await record(http, id_of(said)))["error"]


@routes
async def test_traffic_without_our_fields_is_vllms_own(vllm: FakeVllm, http: httpx.AsyncClient, path: str) -> None:
    async def say() -> list[Any]:
        answer = await whole(http, path, stop_sequences=[])
        streamed = await events(http, path)
        for found in (answer, *streamed):
            for holder in (found, found.get("response"), found.get("message")):
                for key in ("id", "item_id", "created_at"):
                    (holder or {}).pop(key, None)
            for part in (*found.get("output", []), *(found.get("response") or {}).get("output", [])):
                part.pop("id")
            found.get("item", {}).pop("id", None)
        return [answer, streamed]

    ours = await say()
    vllm.responses.__class__, vllm.messages.__class__ = OpenAIServingResponses, AnthropicServingMessages
    assert ours == await say()


async def test_a_client_that_leaves_is_on_record(vllm: FakeVllm, http: httpx.AsyncClient) -> None:
    request = ResponsesRequest(**body_of(RESPONSES, stream=True, probes=BOTH))
    stream = await vllm.responses.create_responses(request)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.aclose()
    assert (await record(http, request.request_id))["error"] == "aborted"


async def test_counting_tokens_takes_no_fields(http: httpx.AsyncClient) -> None:
    body = body_of(MESSAGES, steering=CALM)
    response = await http.post(f"{MESSAGES}/count_tokens", json=body)
    assert (response.status_code, response.json()["type"]) == (400, "error")
    assert "'steering'" in response.json()["error"]["message"]


async def retrieved(http: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    """A response from the store, once it has ended."""
    for _ in range(1000):
        found: dict[str, Any] = (await http.get(f"{RESPONSES}/{response_id}")).json()
        if found["status"] not in ("queued", "in_progress"):
            return found
        await asyncio.sleep(0.001)
    raise AssertionError("it never ended")


async def test_a_stored_response_has_what_the_answer_had(http: httpx.AsyncClient) -> None:
    answer = await whole(http, RESPONSES, steering=CALM, probes=BOTH)
    assert await retrieved(http, answer["id"]) == answer
    following = await whole(http, RESPONSES, previous_response_id=answer["id"], probes=["risk"])
    assert "steering" not in following
    assert following["probes"]["risk"]["n_scored"] == 5


async def test_a_background_response_gets_its_findings_when_it_ends(http: httpx.AsyncClient) -> None:
    queued = await whole(http, RESPONSES, background=True, steering=CALM, probes=BOTH)
    assert queued["status"] == "queued"
    assert not {"steering", "probes"} & set(queued)
    found = await retrieved(http, queued["id"])
    assert found["status"] == "incomplete", "its tokens were counted out"
    assert found["steering"][0]["tokens_edited"] == N_PROMPT + 5
    assert (await record(http, queued["id"]))["choices"][0]["probes"] == found["probes"]


async def test_a_background_response_can_be_streamed_twice(http: httpx.AsyncClient) -> None:
    said = await events(http, RESPONSES, background=True, steering=CALM, probes=BOTH)
    assert outcome(said[-1])["steering"][0]["vector"] == "calm"
    again = await http.get(f"{RESPONSES}/{id_of(said)}", params={"stream": True})
    data = [strict_json(line.removeprefix("data: ")) for line in again.text.splitlines() if line.startswith("data: ")]
    assert data == said


@pytest.mark.parametrize("stream", [False, True])
async def test_a_gap_in_the_background_fails_the_response(http: httpx.AsyncClient, stream: bool) -> None:
    fields: dict[str, Any] = {"background": True, "fake": {"unedited": 2}, "steering": CALM}
    if stream:
        said = await events(http, RESPONSES, **fields)
        assert said[-1]["type"] == "response.failed"
        response_id = id_of(said)
    else:
        response_id = (await whole(http, RESPONSES, **fields))["id"]
    found = await retrieved(http, response_id)
    assert (found["status"], found["error"]["message"]) == ("failed", MESSAGE)
    assert (await record(http, response_id))["error"] == MESSAGE


async def test_tools_that_the_server_calls_are_refused_to_those_who_ask_for_something(vllm: FakeVllm) -> None:
    async def say(**fields: Any) -> Any:
        handler = vllm.responses
        context = SimpleNamespace(available_tools=["python"])

        async def create() -> Any:
            more: dict[str, Any] = {"request_id": "resp_1", "engine_input": {}, "sampling_params": None}
            made = handler._generate_with_builtin_tools(context=context, **more)
            await made.aclose()
            return context.pilothouse_session

        return await handler._with_session(RESPONSES, ResponsesRequest(**body_of(RESPONSES, **fields)), create)

    for fields, param in (({"steering": CALM}, "steering"), ({"probes": ["risk"]}, "probes")):
        refused = await say(**fields)
        assert (refused.error.code, refused.error.param) == (400, param)
    # Each generation is watched for itself then, by the server's default probes, or by none.
    assert await say(probes=[]) is None
    assert await say() is None


def test_a_prompt_without_token_ids_is_refused_before_a_stream_begins(vllm: FakeVllm, server: FakeServer) -> None:
    embedded, params = {"prompt_embeds": object()}, SimpleNamespace(extra_args=None)
    with pytest.raises(BadRequest, match="token ids"):
        vllm.client.check(server.extension.open({"steering": CALM}, RESPONSES, "tiny"), embedded, params)
    vllm.client.check(server.extension.open({}, RESPONSES, "tiny"), embedded, params)
