"""A client of several engines, faked: each is sent what it lacks, and what concerns all of them reaches all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit
from pilothouse.core.errors import EngineGap
from pilothouse.core.messages import DIRECTIONS_KEY, Reading, directions_decoder
from pilothouse.core.plans import Plan
from pilothouse.core.tracks import ChoiceTrack, PromptTrack
from pilothouse.engine.client import PlanSession, SteeringClient, current_session
from pilothouse.engine.own_requests import deliver

ENGINES = [b"\0\0", b"\1\0"]
DIRECTION = Direction({0: np.ones(8, dtype=np.float32)})
PLAN = Plan((Edit("v", DIRECTION, {0: 1.0}, "all"),))


class FakeCore:
    """vLLM's data parallel client, as far as requests go: it chooses by rank, and keeps to its choice."""

    def __init__(self) -> None:
        self.core_engines = ENGINES
        self.chosen: dict[str, bytes] = {}
        self.sent: list[tuple[bytes, Any]] = []
        self.fails = False

    def get_core_engine_for_request(self, request: Any) -> bytes:
        return self.chosen.setdefault(request.request_id, ENGINES[request.data_parallel_rank])

    async def add_request_async(self, request: Any) -> None:
        if self.fails:
            raise RuntimeError("the socket is closed")
        self.sent.append((self.get_core_engine_for_request(request), request.sampling_params.extra_args))


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture
def client(core: FakeCore) -> SteeringClient:
    model = SimpleNamespace(dtype=torch.float32, get_hidden_size=lambda: 8)
    processor = SimpleNamespace(process_outputs=None, request_states={})
    engine = SimpleNamespace(model_config=model, generate=None, engine_core=core, output_processor=processor)
    return SteeringClient(engine, EngineLayout(), lambda: PlanSession(Plan()), 1 << 20)  # type: ignore[arg-type, return-value]


async def add(client: SteeringClient, name: str, rank: int) -> PromptTrack:
    """One request under the plan, added as `AsyncLLM.generate` adds it."""
    params = SamplingParams()
    track = client._track(PlanSession(PLAN), [1, 2], params)  # type: ignore[arg-type]
    client._engine.output_processor.request_states[name] = SimpleNamespace(request_index=0)
    await client.add_request_async(SimpleNamespace(request_id=name, sampling_params=params, data_parallel_rank=rank))
    return track


def contents(core: FakeCore) -> list[tuple[bytes, bool]]:
    """To which engines requests went, and whether content went along."""
    return [
        (
            engine,
            DIRECTIONS_KEY in extra and DIRECTION.digest in directions_decoder.decode(extra[DIRECTIONS_KEY]).content,
        )
        for engine, extra in core.sent
    ]


async def test_content_goes_once_to_each_engine(client: SteeringClient, core: FakeCore) -> None:
    tracks = [await add(client, str(number), rank) for number, rank in enumerate([0, 1, 0, 1])]
    first, second = ENGINES
    assert contents(core) == [(first, True), (second, True), (first, False), (second, False)]
    assert all(track.plan is PLAN for track in tracks)


async def test_what_did_not_reach_an_engine_goes_again(client: SteeringClient, core: FakeCore) -> None:
    core.fails = True
    with pytest.raises(RuntimeError):
        await add(client, "lost", 1)
    core.fails = False
    tracks = [await add(client, "again", 1), await add(client, "then", 1)]
    assert contents(core) == [(ENGINES[1], True), (ENGINES[1], False)]
    assert len(tracks) == 2


class Delivering:
    """An engine client that answers its own requests; deaf: an engine from which no readings come."""

    def __init__(self, deaf: int | None = None) -> None:
        self.engine_core = FakeCore()
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 10)
        self.reached: list[tuple[int, bytes]] = []
        self._deaf = deaf

    def generate(self, prompt: Any, params: Any, name: str, data_parallel_rank: int) -> AsyncIterator[Any]:
        session: Any = current_session.get()
        ids = prompt["prompt_token_ids"]
        (readout,) = session.plan.readouts
        self.reached.append((data_parallel_rank, readout.direction.digest))
        track = ChoiceTrack(len(ids), 1)
        session.add_prompt(PromptTrack(session.plan, ids, [], [track]))
        if data_parallel_rank != self._deaf:
            scores = np.zeros((len(ids), 1), dtype="<f4").tobytes()
            track.add(Reading(((0, len(ids), 0),), ((0, len(ids)),), scores, 0))

        async def outputs() -> AsyncIterator[Any]:
            yield object()

        return outputs()


async def test_an_upload_is_read_with_by_every_engine() -> None:
    engines = Delivering()
    await deliver(engines, DIRECTION)
    assert sorted(engines.reached) == [(0, DIRECTION.digest), (1, DIRECTION.digest)]


async def test_one_engine_that_does_not_read_with_it_fails_the_upload() -> None:
    with pytest.raises(EngineGap, match="did not read"):
        await deliver(Delivering(deaf=1), DIRECTION)
