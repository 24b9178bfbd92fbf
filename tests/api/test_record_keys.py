"""Who may read records, and what the key that reads them does not open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_support.artefacts import write_all
from api_support.client import Client, assert_refused, connect
from api_support.fake_engine import CHAT, FakeServer
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from pilothouse.core.config import RecordsConfig, ServerConfig
from pilothouse.core.errors import StartupError

RESULTS = "/v1/probes/results"
ADMIN, READER, API = "an-admin", "a-reader", "an-api-key"
BODY = {"messages": [{"role": "user", "content": "Where is Oslo?"}], "probes": ["risk"], "user": "me"}
LABEL = {"probe": "risk", "value": True, "source": "me"}


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return write_all(tmp_path, admin_key=None, records=RecordsConfig(f"sqlite:///{tmp_path / 'records.sqlite'}"))


def serve(config: ServerConfig, **keys: str | None) -> FakeServer:
    return FakeServer(replace(config, **keys))  # type: ignore[arg-type]


@pytest.fixture
def servers() -> Iterator[list[FakeServer]]:
    started: list[FakeServer] = []
    yield started
    for server in started:
        server.app.state.pilothouse.records.writer.close()


def bearer(key: str | None, scheme: str = "Bearer") -> dict[bytes, bytes]:
    return {} if key is None else {b"Authorization": f"{scheme} {key}".encode()}


async def reads(http: httpx.AsyncClient, headers: dict[bytes, bytes]) -> list[int]:
    """What the routes of records answer."""
    one, many, file = f"{RESULTS}/chatcmpl-me", RESULTS, f"{RESULTS}/export?format=parquet"
    found = [(await http.get(path, headers=headers)).status_code for path in (one, many, file)]
    label = await http.post(f"{RESULTS}/chatcmpl-me/label", headers=headers, json=LABEL)
    return [*found, label.status_code]


@pytest.mark.parametrize(
    ("keys", "open_to"),
    [
        ({}, {None, ADMIN, READER}),
        ({"admin_key": ADMIN}, {ADMIN}),
        ({"reader_key": READER}, {READER}),
        ({"admin_key": ADMIN, "reader_key": READER}, {ADMIN, READER}),
    ],
)
async def test_records_are_open_to_their_keys(
    config: ServerConfig, servers: list[FakeServer], keys: dict[str, str], open_to: set[str | None]
) -> None:
    servers.append(serve(config, **keys))
    async with connect(servers[0]) as http:
        await http.post(CHAT, json=BODY)
        for key in (None, ADMIN, READER, "another", f"{READER}x", "naïve"):
            expected = [200] * 4 if key in open_to or not keys else [401] * 4
            assert await reads(http, bearer(key)) == expected
        if keys:
            for key in open_to:
                assert await reads(http, bearer(key, "bearer")) == [200] * 4
                assert await reads(http, bearer(key, "Basic")) == [401] * 4
            refusal = await http.get(RESULTS)
            assert refusal.headers["www-authenticate"] == "Bearer"
            assert_refused(refusal, None, 401)


async def test_the_reader_key_opens_nothing_else(config: ServerConfig, servers: list[FakeServer]) -> None:
    servers.append(serve(config, admin_key=ADMIN, reader_key=READER))
    # As vLLM puts it around, with the keys that the launcher gives it.
    app: Any = AuthenticationMiddleware(servers[0].app, tokens=[API, ADMIN, READER])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://pilothouse") as http:
        assert (await http.post(CHAT, json=BODY, headers=bearer(API))).status_code == 200
        assert await reads(http, bearer(READER)) == [200] * 4
        assert await reads(http, bearer(API)) == [401] * 4, "an API key reads none"
        for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
            for method, path in (
                ("POST", CHAT),
                ("POST", "/v1/completions"),
                ("POST", "/v1/embeddings"),
                ("POST", "/inference/v1/generate"),
                ("GET", "/v1/probes"),
                ("GET", "/v1/capabilities"),
                ("GET", "/v1/models"),
                ("POST", "/v1/probes"),
                ("DELETE", "/v1/probes/results"),
                ("POST", f"{RESULTS}x"),
                ("POST", f"{RESULTS}/../../chat/completions"),
                ("POST", "/v1/registry/reload"),
            ):
                response = await http.request(method, path, json=BODY, headers=bearer(READER, scheme))
                assert response.status_code in (401, 404, 405), (method, path)
                if "results/" not in path:
                    assert response.status_code == 401, (method, path)
        twice = [("Authorization", f"Bearer {READER}"), ("Authorization", "Bearer another")]
        assert (await http.post(CHAT, json=BODY, headers=twice)).status_code == 401
        refusal = await http.post(CHAT, json=BODY, headers=bearer(READER))
        assert "reads records, and nothing else" in assert_refused(refusal, None, 401)["message"]
        message = await http.post("/v1/messages", json=BODY, headers=bearer(READER))
        assert message.json()["error"]["type"] == "AuthenticationError"
        assert (await http.post("/tokenize", json=BODY, headers=bearer(READER))).status_code == 200


def test_the_reader_key_opens_no_realtime_session(config: ServerConfig, servers: list[FakeServer]) -> None:
    servers.append(serve(config, reader_key=READER))

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    servers[0].app.add_api_websocket_route("/v1/realtime", talk)
    client = TestClient(servers[0].app)
    with client.websocket_connect("/v1/realtime", headers={"Authorization": "Bearer another"}) as session:
        assert session.receive_text() == "hello"
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/v1/realtime", headers={"Authorization": f"Bearer {READER}"}),
    ):
        pass


def test_one_key_cannot_be_both() -> None:
    with pytest.raises(StartupError, match="reader key"):
        ServerConfig(admin_key="same", reader_key="same")


async def test_records_without_a_database_need_the_keys_too(tmp_path: Path) -> None:
    async with connect(FakeServer(write_all(tmp_path, admin_key=None, reader_key=READER))) as http:
        await Client(http).chat(user="me", probes=["risk"])
        assert_refused(await http.get(f"{RESULTS}/chatcmpl-me"), None, 401)
        assert (await http.get(f"{RESULTS}/chatcmpl-me", headers=bearer(READER))).status_code == 200
