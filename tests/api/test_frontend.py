"""The engine's OpenAI handlers, vLLM's own errors included, around a session that finds a gap; no engine runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from api_support.artefacts import ADMIN, write_all
from api_support.client import HEADERS, connect, strict_json
from api_support.fake_engine import CHAT, Behaviour, FakeServer, steps
from vllm.entrypoints.openai.chat_completion import protocol as chats
from vllm.entrypoints.openai.completion import protocol as completions
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import GenerationError

from pilothouse.api.events import lone_choice
from pilothouse.core.config import EngineLayout
from pilothouse.core.plans import edit_spans
from pilothouse.core.serving import RequestSession
from pilothouse.core.tracks import ChoiceTrack, PromptTrack
from pilothouse.engine.client import SteeringClient, current_session
from pilothouse.engine.frontend import SteeringChat

ID = "chatcmpl-me"
MESSAGE = "the engine edited 2 tokens too few: the response was not steered as asked"
PROMPT = [1, 5, 6, 7]


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(write_all(tmp_path, default_probes=("risk", "early")))


@pytest.fixture
def handler(server: FakeServer) -> Any:
    """vLLM's chat handler with only what is needed of it."""
    made = SteeringChat.__new__(SteeringChat)
    made.models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="tiny")])
    made.pilothouse_extension = server.extension
    return made


def run(session: RequestSession, behaviour: Behaviour) -> ChoiceTrack:
    """One sequence of six tokens, as the engine would run it."""
    plan = session.plan
    spans = edit_spans(plan.edits, len(PROMPT))
    track = ChoiceTrack(len(PROMPT), len(plan.readouts))
    session.add_prompt(PromptTrack(plan, PROMPT, spans, [track]))
    list(steps(plan, spans, track, 0, 6, behaviour))
    return track


async def record(server: FakeServer) -> dict[str, Any]:
    async with connect(server) as http:
        found = strict_json((await http.get(f"/v1/probes/results/{ID}", headers=HEADERS)).content)
    assert isinstance(found, dict)
    return found


def request(**fields: Any) -> Any:
    return SimpleNamespace(model_extra=fields, use_beam_search=False, model="tiny", logprobs=None)


@pytest.mark.parametrize("unedited", [0, 2])
async def test_a_gap_is_vllms_internal_server_error(server: FakeServer, handler: Any, unedited: int) -> None:
    choice = SimpleNamespace(index=0, logprobs=None)

    async def create() -> Any:
        session: Any = current_session.get()
        run(session, Behaviour(unedited=unedited))
        return SimpleNamespace(id=ID, choices=[choice])

    response = await handler._with_session(CHAT, request(steering=[{"vector": "calm"}]), create)
    if not unedited:
        assert response.choices == [choice]
        assert (await record(server))["error"] is None
        return
    assert isinstance(response, ErrorResponse)
    assert response.model_dump() == {
        "error": {"message": MESSAGE, "type": "InternalServerError", "param": None, "code": 500}
    }
    assert (await record(server))["error"] == MESSAGE


async def test_a_gap_ends_a_stream_as_vllms_own_errors_do(server: FakeServer, handler: Any) -> None:
    session = server.extension.open({"steering": [{"vector": "calm"}]}, CHAT, "tiny")
    session.set_response_id(ID)
    closed = []

    async def events() -> AsyncGenerator[str, None]:
        try:
            run(session, Behaviour(unedited=2))
            yield 'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
            yield 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
            yield "data: more\n\n"
        finally:
            closed.append(True)

    relayed: AsyncIterator[str] = handler._relay(session, events())
    assert '"content":"a"' in await anext(relayed)
    failed = await anext(relayed)
    # What the engine still runs is given up, and the record is there, when the client learns of the error.
    assert closed == [True]
    assert (await record(server))["error"] == MESSAGE
    assert [event async for event in relayed] == ["data: [DONE]\n\n"]
    own = handler._convert_generation_error_to_streaming_response(GenerationError(MESSAGE))
    assert failed == f"data: {own}\n\n"


async def test_a_stream_is_relayed_in_parts_of_events(
    server: FakeServer, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilothouse.api.events.PART", 100)
    session = server.extension.open({"probes": ["risk", "early"]}, CHAT, "tiny")
    session.set_response_id(ID)
    first = 'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'

    async def events() -> AsyncGenerator[str, None]:
        run(session, Behaviour())
        yield first
        yield 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
        yield "data: [DONE]\n\n"

    parts = [part async for part in handler._relay(session, events())]
    assert parts[0] == first
    assert parts[-1] == "data: [DONE]\n\n"
    assert len(parts) > 3
    (choice,) = strict_json("".join(parts[1:-1]).removeprefix("data: "))["choices"]
    assert choice["probes"].keys() == {"risk", "early"}


@pytest.fixture
def client(server: FakeServer) -> SteeringClient:
    """The engine's client over an engine that answers nothing."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    model = SimpleNamespace(dtype=torch.float32, get_hidden_size=lambda: 8)
    engine = SimpleNamespace(
        model_config=model,
        generate=nothing,
        engine_core=SimpleNamespace(add_request_async=nothing),
        output_processor=SimpleNamespace(process_outputs=nothing),
    )
    return SteeringClient(engine, EngineLayout(), lambda: server.extension.open_default("other", "tiny"), 1 << 20)


def test_prompts_without_token_ids_are_counted_for_each_default_probe(
    server: FakeServer, client: SteeringClient
) -> None:
    client.generate(object(), SimpleNamespace(extra_args=None, n=1), "r")
    value = server.metrics_registry.get_sample_value
    for probe, count in (("risk", 1), ("early", 1), ("truthfulness", None)):
        labels = {"model_name": "tiny", "probe": probe, "reason": "no_token_ids"}
        assert value("pilothouse_probe_unscored_total", labels) == count
    assert value("pilothouse_probe_tokens_total", {"model_name": "tiny", "probe": "risk"}) == 0


def test_a_server_without_default_probes_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    server = FakeServer(write_all(tmp_path / "plain", admin_key=ADMIN))
    server.extension.open_default("other", "tiny").close("no_token_ids")
    families = [f for f in server.metrics_registry.collect() if f.type in ("counter", "histogram")]
    assert [s for f in families for s in f.samples if s.value and not s.name.endswith("_created")] == []


def test_default_probes_are_given_up_for_a_prompt_of_embeddings_and_asked_ones_are_not(server: FakeServer) -> None:
    session = server.extension.open({}, "/v1/completions", "tiny")
    assert not session.plan.empty
    assert not session.asked
    session.close("no_token_ids")
    event = 'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n'
    assert (session.decorate(0), session.token_scores(0), [*session.rewrite_event(event)]) == ({}, [], [event])
    assert server.extension.open({"probes": ["truthfulness"]}, "/v1/completions", "tiny").asked
    assert not server.extension.open({"probes": []}, "/v1/completions", "tiny").asked


@pytest.mark.parametrize("chat", [True, False])
def test_an_event_of_vllms_need_not_be_read_whole(chat: bool) -> None:
    common: dict[str, Any] = {"index": 3, "logprobs": None, "finish_reason": None, "token_ids": None}
    if chat:
        choice = chats.ChatCompletionResponseStreamChoice(delta=chats.DeltaMessage(content="a"), **common)
        chunk = chats.ChatCompletionStreamResponse(choices=[choice], model="tiny")
    else:
        choice = completions.CompletionResponseStreamChoice(text="a", stop_reason=None, **common)
        chunk = completions.CompletionStreamResponse(choices=[choice], model="tiny")
    assert lone_choice(f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n") == 3
