"""The guard: our fields on routes that cannot honour them, endless bodies, and everything else untouched."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from api_support.client import Client, assert_refused
from api_support.fake_engine import CHAT, COMPLETIONS, FakeServer
from starlette.types import Message, Receive, Scope, Send

from pilothouse.api.guard import FieldGuard, is_guarded

DEAF = ["/v1/embeddings", "/v1/responses/resp_1/cancel", "/inference/v1/generate"]


@pytest.mark.parametrize("path", DEAF)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"steering": []}, "steering"),
        ({"probes": None, "input": "x"}, "probes"),
        ({"steering_vectors": []}, "steering_vectors"),
        ({"Probes": []}, "Probes"),
    ],
)
async def test_fields_that_would_be_ignored_are_refused(client: Client, path: str, body: Any, param: str) -> None:
    assert_refused(await client.http.post(path, json=body), param)


@pytest.mark.parametrize(
    "raw",
    [b'{"\\u0073teering": []}', '{"probes": []}'.encode("utf-16"), '{"probes": []}'.encode("utf-32-be")],
    ids=["escaped", "utf-16", "utf-32"],
)
async def test_no_spelling_hides_them(client: Client, raw: bytes) -> None:
    assert (await client.http.post("/v1/embeddings", content=raw)).status_code == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b'{"input": "steering the probes"}',
        b'{"a": {"steering": 1}}',
        b'["steering", "probes"]',
        b'{"user": "\\u00e4"}',
    ],
)
async def test_other_bodies_pass(client: Client, raw: bytes) -> None:
    response = await client.http.post("/v1/embeddings", content=raw)
    assert response.json() == {"served": "/v1/embeddings"}


async def test_unguarded_routes_pass(client: Client) -> None:
    assert (await client.http.post("/tokenize", json={"steering": []})).status_code == 200


async def test_deep_nesting_is_a_bad_request(client: Client) -> None:
    raw = b'{"steering": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert (await client.http.post("/v1/embeddings", content=raw)).status_code == 400


@pytest.mark.parametrize(
    ("path", "guarded"),
    [
        (CHAT, False),
        (CHAT + "/", False),
        (COMPLETIONS, False),
        (CHAT + "/batch", True),
        (CHAT + "/render", True),
        ("/v1/messages", False),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/render", True),
        ("/v1/responses", False),
        ("/v1/responses/resp_1/cancel", True),
        ("/v2/chat", True),
        ("/v2/embed", True),
        ("/cohere/v2/chat", True),
        ("/invocations", True),
        ("/inference/v1/generate", True),
        ("/score", True),
        ("/scores", False),
        ("/v1/probes", False),
        ("/v1/steering_vectors/x", False),
        ("/tokenize", False),
        ("/metrics", False),
    ],
)
def test_which_routes_are_guarded(path: str, guarded: bool) -> None:
    assert is_guarded(path) is guarded


FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steering[0][vector]": "calm"}, "steering"),
        ({"probes[]": "risk"}, "probes"),
        ({"probes": "risk"}, "probes"),
        ({"steer": "x"}, "steer"),
        ({"model": "tiny:careful"}, "model"),
    ],
)
async def test_forms_are_looked_at_too(server: FakeServer, client: Client, fields: dict[str, str], param: str) -> None:
    server.app.state.pilothouse = replace(server.app.state.pilothouse, presets=("careful",))
    sound = {"file": ("a.wav", b"RIFF\0\0&probes=1\r\n\r\nname=steering", "audio/wav")}
    data = {"model": "tiny", "prompt": "steering the probes", **fields}
    for response in (
        await client.http.post("/v1/audio/transcriptions", data=data, files=sound),
        await client.http.post("/v1/audio/transcriptions", data=data),
    ):
        assert_refused(response, param)


async def test_other_forms_pass(client: Client) -> None:
    sound = {"file": ("steering.wav", b"RIFF\0\0&probes=1\r\n\r\nname=steering", "audio/wav")}
    data = {"model": "tiny", "prompt": "steering & probes=", "temperature": "0", "timestamp_granularities[]": "word"}
    for files in (sound, None):
        response = await client.http.post("/v1/audio/transcriptions", data=data, files=files)
        assert response.status_code == 404, "there is no such route here, so it was passed on"


def whisper(*messages: Message) -> tuple[list[Message], list[Message]]:
    """A realtime session in which the client says these: what the application received, and the client was sent."""
    received, sent = list[Message](), list[Message]()
    waiting = iter(({"type": "websocket.connect"}, *messages, {"type": "websocket.disconnect", "code": 1000}))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not received or received[-1]["type"] != "websocket.disconnect":
            received.append(await receive())

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(FieldGuard(app)({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send))
    return received, sent


@pytest.mark.parametrize(
    "said",
    [
        {"type": "session.update", "model": "tiny", "steering": []},
        {"type": "session.update", "session": {"probes": ["risk"]}},
        {"type": "session.update", "probe": []},
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_a_realtime_session_that_asks_for_something_ends(said: dict[str, Any], binary: bool) -> None:
    text = json.dumps(said)
    message = {"type": "websocket.receive", **({"bytes": text.encode()} if binary else {"text": text})}
    received, (error, close) = whisper(message)
    assert [m["type"] for m in received] == ["websocket.connect", "websocket.disconnect"]
    assert json.loads(error["text"])["type"] == "error"
    assert json.loads(error["text"])["error"]["code"] == 400
    assert (close["type"], close["code"]) == ("websocket.close", 1008)


def test_a_realtime_session_is_left_alone() -> None:
    message = {"type": "websocket.receive", "text": '{"type": "session.update", "model": "steering"}'}
    received, sent = whisper(message)
    assert received[1] is message
    assert sent == []


async def test_anthropics_routes_answer_in_anthropics_shape(client: Client) -> None:
    response = await client.http.post("/v1/messages/count_tokens", json={"steering": []})
    assert response.status_code == 400
    assert set(response.json()) == {"type", "error"}
    assert set(response.json()["error"]) == {"type", "message"}
    assert response.json()["error"]["message"].startswith("steering: this endpoint cannot honour 'steering'")


class Recorder:
    """An application that notes what it receives."""

    def __init__(self) -> None:
        self.received: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.received = [await receive(), await receive()]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def drive(messages: list[Message], **scope: Any) -> tuple[list[Message], list[Message]]:
    """What the application received and what the client was sent."""
    app, sent = Recorder(), []
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], **scope}
    await asyncio.wait_for(FieldGuard(app, max_body_bytes=20)(whole, receive, send), 5)
    return app.received, sent


def part(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}


async def test_the_body_is_replayed_and_a_later_disconnect_is_seen() -> None:
    received, _ = await drive([part(b'{"a":', True), part(b"1}", False), GONE])
    assert received == [part(b'{"a":1}', False), GONE]


async def test_a_client_that_leaves_early_reaches_nobody() -> None:
    assert await drive([part(b'{"a":', True), GONE]) == ([], [])


async def test_a_body_over_the_limit_is_refused_before_its_end() -> None:
    received, sent = await drive([part(b"x" * 15, True), part(b"x" * 15, True)])
    assert received == []
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["code"] == 413


@pytest.mark.parametrize("path", ["/v1/steering_vectors", "/v1/probes", "/v1/saes", "/v1/saes/"])
async def test_uploads_are_left_to_their_routes(path: str) -> None:
    pieces = [part(b"x" * 15, True), part(b"x" * 15, False)]
    assert (await drive(pieces, path=path))[0] == pieces


@pytest.mark.parametrize("path", [CHAT, "/tokenize", "/v1/registry/reload"])
async def test_a_declared_length_over_the_limit_is_refused_unread(path: str) -> None:
    received, sent = await drive([], path=path, headers=[(b"content-length", b"21")])
    assert (received, sent[0]["status"]) == ([], 413)


async def test_a_mounted_application_is_guarded_too() -> None:
    _, sent = await drive([part(b'{"probes":[]}', False)], path="/prefix/v1/embeddings", root_path="/prefix")
    assert sent[0]["status"] == 400


async def test_other_methods_pass_unread() -> None:
    received, _ = await drive([part(b'{"probes":[]}', False), GONE], method="GET")
    assert received == [part(b'{"probes":[]}', False), GONE]
