"""The synchronous engine's client over an engine that answers as it is told."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from api_support.artefacts import SHAPE, write_all
from vllm.sampling_params import SamplingParams

from pilothouse.api.plans import Planner
from pilothouse.api.registry import Registry
from pilothouse.api.session import Session, Surroundings
from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.errors import BadRequest, EngineGap
from pilothouse.core.messages import (
    DIRECTIONS_KEY,
    PLAN_KEY,
    READING_KEY,
    Reading,
    directions_decoder,
    plan_decoder,
    reading_encoder,
)
from pilothouse.core.records import RequestOutcome
from pilothouse.engine.llm_client import LLMClient

PROMPT = {"prompt_token_ids": [1, 2, 3, 4], "type": "token"}
STEERED = {"steering": [{"vector": "calm"}]}
N_FORWARDED = 5


class Engine:
    """An `LLMEngine` as far as the client looks at it: a request has four tokens, and two are generated."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(
            dtype=torch.float32, is_encoder_decoder=False, get_hidden_size=lambda: SHAPE.d_model
        )
        self.sent: list[Any] = []
        self.aborted: list[str] = []
        self.refuses = False
        self.engine_core = SimpleNamespace(add_request=self.take)
        self.output_processor = SimpleNamespace(process_outputs=self.process, request_states={})
        self.processed: list[Any] = []

    def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        # As vLLM does: the engine knows a request by another name, and has parameters of its own.
        request = SimpleNamespace(request_id=f"{request_id}-x", sampling_params=copy.copy(params))
        self.output_processor.request_states[request.request_id] = SimpleNamespace(request_index=0)
        self.engine_core.add_request(request)
        return str(request.request_id)

    def take(self, request: Any) -> None:
        if self.refuses:
            raise RuntimeError("the engine is gone")
        self.sent.append(request)

    def process(self, outputs: list[Any]) -> None:
        self.processed += outputs

    def abort_request(self, ids: list[str], internal: bool) -> None:
        assert internal
        self.aborted += ids

    def answer(self, number: int, edited: int) -> Any:
        """The reading of request `number` comes in, with this many positions edited; its finished output."""
        request_id = self.sent[number].request_id
        reading = Reading(runs=((0, N_FORWARDED, edited),))
        core = SimpleNamespace(
            request_id=request_id, kv_transfer_params={READING_KEY: reading_encoder.encode(reading)}, finish_reason=None
        )
        self.output_processor.process_outputs([core])
        choice = SimpleNamespace(index=0, token_ids=[5, 6], finish_reason="length")
        return SimpleNamespace(request_id=request_id.removesuffix("-x"), outputs=[choice])


class Nowhere:
    def observe(self, outcome: RequestOutcome) -> None:
        raise AssertionError("nothing is recorded of calls in this process")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine) -> LLMClient:
    made = LLMClient(engine, EngineLayout(), 1 << 20)
    made.install()
    return made


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(Registry(write_all(tmp_path), SHAPE), EngineLayout(), Limits())


def session(planner: Planner, fields: dict[str, Any]) -> Session:
    return Session(planner.plan(fields), "offline", "tiny", Surroundings(Nowhere(), str, None, 3))


def add(engine: Engine, client: LLMClient, sessions: list[Session], prompt: Any = PROMPT) -> None:
    with client.carrying(sessions):
        for number in range(len(sessions)):
            engine.add_request(str(number), prompt, SamplingParams())


def test_plans_and_content_go_out_and_findings_come_back(engine: Engine, client: LLMClient, planner: Planner) -> None:
    add(engine, client, [session(planner, fields) for fields in (STEERED, {}, STEERED)])
    extras = [request.sampling_params.extra_args for request in engine.sent]
    plans = [plan_decoder.decode(extra[PLAN_KEY]) if extra else None for extra in extras]
    assert plans[0] == plans[2]
    assert plans[0] is not None
    assert plans[1] is None
    # The content of a direction travels once, with the first request that names it.
    assert set(directions_decoder.decode(extras[0][DIRECTIONS_KEY]).content) == plans[0].named
    assert DIRECTIONS_KEY not in extras[2]
    outputs = [engine.answer(number, edited) for number, edited in enumerate((N_FORWARDED, 0, N_FORWARDED))]
    assert all(core.kv_transfer_params is None for core in engine.processed)
    client.decorate(outputs)
    assert [output.outputs[0].probes for output in outputs] == [None] * 3
    assert [[r["tokens_edited"] for r in o.outputs[0].steering or ()] for o in outputs] == [[5], [], [5]]
    assert outputs[1].outputs[0].steering is None


def test_what_the_engine_left_out_is_raised_with_the_prompt(
    engine: Engine, client: LLMClient, planner: Planner
) -> None:
    add(engine, client, [session(planner, STEERED) for _ in range(3)])
    outputs = [engine.answer(number, edited) for number, edited in enumerate((N_FORWARDED, 3, 0))]
    with pytest.raises(EngineGap, match=r"prompt 1: the engine edited 2 tokens too few.*\(and 1 more like it\)"):
        client.decorate(outputs)


def test_requests_are_given_up_when_one_of_them_cannot_be_added(
    engine: Engine, client: LLMClient, planner: Planner
) -> None:
    behind = {"steering": [{"vector": "calm", "positions": {"from": -9, "to": -7}}]}
    with pytest.raises(BadRequest, match="select nothing"):
        add(engine, client, [session(planner, STEERED), session(planner, behind)])
    assert engine.aborted == ["0-x"]
    assert not client._running
    engine.refuses = True
    with pytest.raises(RuntimeError, match="the engine is gone"):
        add(engine, client, [session(planner, {"steering": [{"vector": "honest"}]})])
    engine.refuses = False
    add(engine, client, [session(planner, {"steering": [{"vector": "honest"}]})])
    # What did not arrive goes along again.
    assert DIRECTIONS_KEY in engine.sent[-1].sampling_params.extra_args


def test_sessions_are_for_the_call_that_they_were_made_for(engine: Engine, client: LLMClient, planner: Planner) -> None:
    with client.carrying([session(planner, STEERED), session(planner, STEERED)]):
        engine.add_request("0", PROMPT, SamplingParams())
    engine.add_request("1", PROMPT, SamplingParams())
    assert [bool(request.sampling_params.extra_args) for request in engine.sent] == [True, False]


def test_prompts_without_token_ids_cannot_be_steered(engine: Engine, client: LLMClient, planner: Planner) -> None:
    embeds = {"prompt_embeds": torch.zeros(3, SHAPE.d_model), "type": "embeds"}
    add(engine, client, [session(planner, {})], embeds)
    with pytest.raises(BadRequest, match="token ids or text") as caught:
        add(engine, client, [session(planner, STEERED)], embeds)
    assert caught.value.param == "prompts"


def test_reserved_keys_cannot_be_forged(engine: Engine, client: LLMClient) -> None:
    with pytest.raises(BadRequest, match="is reserved"):
        engine.add_request("0", PROMPT, SamplingParams(extra_args={PLAN_KEY: b""}))
    assert engine.sent == []
