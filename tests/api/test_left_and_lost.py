"""Requests that end otherwise than they should: whose fault it was, what is kept of them, what is lost uncounted."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_support.artefacts import write_all
from api_support.client import Client, connect
from api_support.fake_engine import FakeServer

from pilothouse.core.config import RecordsConfig
from pilothouse.core.errors import BadRequest
from pilothouse.core.messages import StepCost
from pilothouse.core.plans import edit_spans
from pilothouse.core.tracks import ChoiceTrack, PromptTrack
from pilothouse.engine.client import current_session
from pilothouse.engine.sessions import SteeringServing
from pilothouse.records.database import DatabaseError
from pilothouse.records.store import RecordStore

ROUTE = "/v1/completions"
ASKED = {"names": ["risk"], "tokens": True, "prompt": True}


class Handler(SteeringServing):
    """vLLM's part of a handler, made up: the model's names, and errors as it makes them."""

    def __init__(self, server: FakeServer) -> None:
        self.models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="tiny"), SimpleNamespace(name="alias")])
        self.pilothouse_extension = server.extension

    def create_error_response(self, error: Any, **_: Any) -> Any:
        return SimpleNamespace(error=SimpleNamespace(message=str(error)))

    async def ask(self, create: Any, model: str = "tiny") -> Any:
        request = SimpleNamespace(model=model, model_extra={"probes": ["risk"]})
        return await self._with_session(ROUTE, request, create)


def begin() -> None:
    """Hand a prompt to the engine, as vLLM's handlers do."""
    session: Any = current_session.get()
    spans = edit_spans(session.plan.edits, 3)
    session.add_prompt(PromptTrack(session.plan, [1, 5, 6], spans, [ChoiceTrack(3, len(session.plan.readouts))]))


async def test_a_client_that_leaves_a_whole_answer_is_no_fault_of_the_server(server: FakeServer) -> None:
    handler, begun = Handler(server), asyncio.Event()

    async def create() -> Any:
        begin()
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            # As vLLM's handlers have it.
            return handler.create_error_response("Client disconnected")

    task = asyncio.create_task(handler.ask(create))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    (told,) = server.outcomes
    assert told.error == "aborted"
    assert [probe.reason for choice in told.choices for probe in choice.probes] == ["aborted"]


async def test_a_request_that_is_refused_after_it_began_leaves_no_record(server: FakeServer) -> None:
    async def create() -> Any:
        begin()
        raise BadRequest("the second prompt is too short")

    assert "too short" in (await Handler(server).ask(create)).error.message
    assert server.outcomes == []


async def test_a_model_has_one_name_in_metrics_and_records(server: FakeServer) -> None:
    async def create() -> Any:
        begin()
        raise RuntimeError("broken")

    for name in ("tiny", "alias"):
        with pytest.raises(RuntimeError):
            await Handler(server).ask(create, name)
    assert [told.model_name for told in server.outcomes] == ["tiny", "tiny"]
    assert all(told.response_id.startswith("request-") for told in server.outcomes), "none has an id of its own"
    assert len({told.response_id for told in server.outcomes}) == 2


@contextmanager
def keeping(folder: Path, **records: Any) -> Iterator[tuple[FakeServer, Path]]:
    path = folder / "records.sqlite"
    made = FakeServer(
        write_all(folder / "served", admin_key=None, records=RecordsConfig(f"sqlite:///{path}", **records))
    )
    try:
        yield made, path
    finally:
        made.app.state.pilothouse.records.writer.close()


def stored(path: Path) -> dict[str, Any]:
    connection = sqlite3.connect(path)
    ((body,),) = connection.execute("select body from responses").fetchall()
    connection.close()
    found: dict[str, Any] = json.loads(body)
    return found


@pytest.mark.parametrize(("records", "kept"), [({}, False), ({"text": True}, True)])
async def test_tokens_are_kept_as_texts_are(tmp_path: Path, records: dict[str, Any], kept: bool) -> None:
    (tmp_path / "served").mkdir()
    with keeping(tmp_path, **records) as (server, path):
        async with connect(server) as http:
            choice = await Client(http).choice(user="me", probes=ASKED)
            # Memory, of which nothing outlives the server, has all that was asked for.
            shown = (await http.get("/v1/probes/results/chatcmpl-me")).json()["choices"][0]
    assert shown["probes"]["risk"]["tokens"] == choice["probes"]["risk"]["tokens"]
    risk = stored(path)["choices"][0]["probes"]["risk"]
    for name in ("tokens", "prompt_tokens"):
        assert [entry["score"] for entry in risk[name]] == [e["score"] for e in choice["probes"]["risk"][name]]
        assert all(("token" in entry) is ("token_id" in entry) is kept for entry in risk[name])


async def test_texts_that_cannot_be_read_cost_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served").mkdir()
    with keeping(tmp_path, text=True) as (server, path):
        around = server.extension._around  # type: ignore[attr-defined]
        object.__setattr__(around, "read_text", lambda ids: 1 / 0)
        async with connect(server) as http:
            await Client(http).choice(user="me", probes=["risk"])
    assert stored(path)["text"] is None
    assert len(server.outcomes) == 1


async def test_what_cannot_be_told_is_counted(
    server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilothouse.api.session.steering_label", lambda *a: 1 / 0)
    await client.choice(probes=["risk"])
    monkeypatch.setattr(type(server.app.state.pilothouse.metrics), "add_step_times", lambda *a: 1 / 0)
    server.extension.spent("tiny", StepCost(1, 0.1, 0.1))
    page = (await client.http.get("/metrics")).text
    assert 'pilothouse_sink_errors_total{sink="Session"} 2.0' in page


async def test_a_label_is_stored_though_the_others_cannot_be_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise DatabaseError("busy")

    (tmp_path / "served").mkdir()
    monkeypatch.setattr(RecordStore, "quality", fail)
    with keeping(tmp_path) as (server, _):
        async with connect(server) as http:
            await Client(http).choice(user="me", probes=["risk"])
            label = {"probe": "risk", "value": True, "source": "me"}
            assert (await http.post("/v1/probes/results/chatcmpl-me/label", json=label)).status_code == 200
            assert len((await http.get("/v1/probes/results/chatcmpl-me")).json()["labels"]) == 1
            assert "pilothouse_probe_labels_total{" in (await http.get("/metrics")).text
            assert (await http.get("/v1/probes/results/")).status_code == 404
