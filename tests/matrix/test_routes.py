"""Which routes carry `steering` and `probes`, streamed and whole, and what those say that cannot."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from engine_support.harness import Reference
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve_support.routes import (
    ADMIN,
    PROBES,
    QUESTION,
    ROUTES,
    STEERING,
    STRENGTH,
    Answer,
    ask,
    check_against_reference,
    check_stream,
    error_of,
    officially,
    plain_plan,
    send,
    steered_plan,
)
from serve_support.server import PRESETS, Server
from starlette.websockets import WebSocketDisconnect
from vllm.entrypoints.speech_to_text.realtime.api_router import router as realtime_router

from pilothouse.api.guard import FieldGuard

pytestmark = pytest.mark.engine

ROWS = [row for route in ROUTES for row in (route, f"{route} (streamed)")]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"steering": [{"vector": "no-such-vector"}]}, "steering[0].vector"),
    ({"steering": [{"vector": "honest", "strength": "much"}]}, "steering[0].strength"),
    ({"steering": [{"vector": "honest", "positions": {"from": -1, "to": 0}}]}, "steering[0].positions"),
    ({"probes": ["no-such-probe"]}, "probes[0]"),
    ({"probes": {"names": ["truthfulness"], "token": True}}, "probes.token"),
    ({"steer": []}, "steer"),
    # Known only once the prompt is: a stream must not have begun by then.
    (
        {"steering": [{"vector": "honest", "positions": {"from": i, "to": 40 + 2 * i}} for i in range(8)]},
        "steering",
    ),
]


def of(row: str) -> tuple[str, bool]:
    """The route of a row, and whether it is streamed."""
    return row.removesuffix(" (streamed)"), row.endswith("(streamed)")


def same(one: Answer, other: Answer) -> None:
    """But for their ids, and the pieces in which scores came."""
    assert (one.text, one.n_tokens, one.steering) == (other.text, other.n_tokens, other.steering)
    logits, expected = ([entry["logit"] for entry in answer.probe["tokens"][:-1]] for answer in (one, other))
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.cell("routes", "{row}", "steering")
@pytest.mark.parametrize("row", ROWS)
def test_steering(server: Server, reference: Reference, row: str) -> None:
    route, stream = of(row)
    steered = ask(server, route, stream, steering=STEERING, probes=PROBES)
    check_against_reference(steered, reference, steered_plan(server))
    (receipt,) = steered.steering
    # From the last prompt token to the last but one generated token.
    assert receipt["tokens_edited"] == steered.n_tokens
    assert receipt["coefficients"] == {"1": STRENGTH, "4": STRENGTH}
    assert steered.text != ask(server, route, stream).text


@pytest.mark.cell("routes", "{row}", "probes")
@pytest.mark.parametrize("row", ROWS)
def test_probes(server: Server, reference: Reference, row: str) -> None:
    route, stream = of(row)
    answer = ask(server, route, stream, probes=PROBES)
    check_against_reference(answer, reference, plain_plan())
    assert "steering" not in answer.found
    if stream:
        check_stream(answer)


@pytest.mark.cell("routes", "{row}", "record")
@pytest.mark.parametrize("row", ROWS)
def test_the_record_is_there_when_the_answer_is(server: Server, row: str) -> None:
    route, stream = of(row)
    answer = ask(server, route, stream, steering=STEERING, probes=PROBES)
    found = server.get(f"/v1/probes/results/{answer.id}", headers=ADMIN)
    assert found.status_code == 200, found.text
    (choice,) = found.json()["choices"]
    assert {key: choice[key] for key in ("steering", "probes")} == answer.found
    assert (found.json()["steering"], found.json()["error"]) == ("everywhere", None)


@pytest.mark.cell("routes", "{row}", "preset")
@pytest.mark.parametrize("row", ROWS)
def test_a_preset_is_what_it_stands_for(server: Server, row: str) -> None:
    route, stream = of(row)
    preset = ask(server, route, stream, model="harbor:careful", probes=PROBES)
    same(preset, ask(server, route, stream, **{**PRESETS["careful"], "probes": PROBES}))
    assert preset.steering[0]["op"] == "ablate"
    assert preset.steering[0]["tokens_edited"] > preset.n_tokens


@pytest.mark.cell("routes", "{row}", "errors")
@pytest.mark.parametrize("row", ROWS)
def test_errors(server: Server, row: str) -> None:
    route, stream = of(row)
    for fields, param in BAD:
        response = send(server, route, stream, **fields)
        assert response.status_code == 400, (fields, response.text)
        message, named = error_of(route, response)
        assert (bool(message), named) == (True, param)


@pytest.mark.cell("routes", "{row}", "official client")
@pytest.mark.parametrize("row", ROWS)
def test_the_official_client_hands_all_of_it_on(server: Server, row: str) -> None:
    route, stream = of(row)
    answer = officially(server, route, stream, steering=STEERING, probes=PROBES)
    same(answer, ask(server, route, stream, steering=STEERING, probes=PROBES))
    if stream:
        check_stream(answer)


MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
DEAF: dict[str, tuple[str, dict[str, Any]]] = {
    "chat completions, batch": ("/v1/chat/completions/batch", {"messages": [MESSAGES]}),
    "chat completions, render": ("/v1/chat/completions/render", {"messages": MESSAGES}),
    "classify": ("/classify", {"input": QUESTION}),
    "Cohere chat": ("/cohere/v2/chat", {"messages": MESSAGES}),
    "Cohere embed": ("/v2/embed", {"texts": [QUESTION]}),
    "embeddings": ("/v1/embeddings", {"input": QUESTION}),
    "generate (tokens in, tokens out)": ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {}}),
    "generative scoring": ("/generative_scoring", {"query": QUESTION, "items": ["a"]}),
    "invocations (SageMaker)": ("/invocations", {"messages": MESSAGES}),
    "Messages, count_tokens": ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    "pooling": ("/pooling", {"input": QUESTION}),
    "rerank": ("/v1/rerank", {"query": QUESTION, "documents": ["a"]}),
    "Responses, cancel": ("/v1/responses/resp_1/cancel", {}),
    "score": ("/v1/score", {"queries": QUESTION, "documents": ["a"]}),
    "structured decisions": ("/v1/systemone", {"input": QUESTION}),
}


@pytest.mark.cell("routes", "{row}", "steering and probes")
@pytest.mark.parametrize("row", [*DEAF])
def test_a_route_that_cannot_honour_the_fields_says_so(
    server: Server, refused: Callable[[str], None], row: str
) -> None:
    path, body = DEAF[row]
    wanted: list[dict[str, Any]] = [{"probes": []}, {"Probes": []}, {"model": "harbor:careful"}, {"steering": STEERING}]
    for fields in wanted:
        response = server.post(path, {"model": "harbor", **body, **fields})
        assert response.status_code == 400, (fields, response.text)
        assert next(iter(fields)) in response.text
    refused(response.json()["error"]["message"].removeprefix("steering: "))


@pytest.mark.cell("routes", "{row}", "steering and probes")
@pytest.mark.parametrize("row", ["audio transcriptions", "audio translations"])
def test_a_form_that_cannot_honour_the_fields_is_refused(
    server: Server, refused: Callable[[str], None], row: str
) -> None:
    url = f"{server.url}/v1/{row.replace(' ', '/')}"
    for fields in ({"probes[]": "truthfulness"}, {"model": "harbor:careful"}, {"steering[0][vector]": "honest"}):
        response = httpx.post(url, data={"model": "harbor", **fields}, files={"file": b"RIFF"}, trust_env=False)
        assert response.status_code == 400, (fields, response.text)
    refused(response.json()["error"]["message"])


@pytest.mark.cell("routes", "realtime", "steering and probes")
def test_a_realtime_session_that_asks_for_something_is_refused(refused: Callable[[str], None]) -> None:
    """vLLM's own session, which only models of sound have; the guard is what every server has around it."""
    app = FastAPI()
    app.include_router(realtime_router)
    app.add_middleware(FieldGuard)
    app.state.openai_serving_realtime = SimpleNamespace(_is_model_supported=lambda name: True)
    client = TestClient(app)
    update = {"type": "session.update", "model": "voice"}
    with client.websocket_connect("/v1/realtime") as session:
        assert session.receive_json()["type"] == "session.created"
        session.send_json(update)
        session.send_json({**update, "steering": STEERING})
        said = session.receive_json()
        assert (said["type"], said["error"]["param"]) == ("error", "steering")
        with pytest.raises(WebSocketDisconnect):
            session.receive_json()
    refused(said["error"]["message"])
