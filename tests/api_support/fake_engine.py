"""What the engine room does with sessions, without an engine: a web application that answers in milliseconds.

A prompt is a text of which every character is a token behind BOS; answers, and the residual stream at every position,
are random but the same every time.
"""

import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry

from api_support.artefacts import D_MODEL, SHAPE
from pilothouse.api.errors import error_body, error_response
from pilothouse.api.peers import Peers
from pilothouse.api.plugin import PilothousePlugin, assemble
from pilothouse.core.config import EngineLayout, ServerConfig
from pilothouse.core.directions import Direction
from pilothouse.core.errors import BadRequest, EngineGap
from pilothouse.core.messages import Reading
from pilothouse.core.plans import Plan, edit_spans
from pilothouse.core.records import RequestOutcome
from pilothouse.core.serving import RequestExtension, RequestSession
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.core.tracks import ChoiceTrack, PromptTrack
from pilothouse.telemetry.metrics import Metrics

BOS = 1
MODEL = "tiny"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_OPENAI_FIELDS = {"model", "messages", "prompt", "max_tokens", "n", "stream", "logprobs", "fake"}


@dataclass(frozen=True)
class Behaviour:
    """How the engine runs a request; the client of the fake says it under `fake`.

    cached: prompt positions that come from the prefix cache; per_step: tokens that a step emits; ahead: the last
    generated token is forwarded before its end is known; late: steps by which readings lag; preempted: generated
    tokens after which all is forwarded again; poisoned: generated tokens whose readings are not numbers; abort: the
    client leaves after this many tokens; fails: the engine dies after a token.

    Faults of the engine, in choice `faulty` only, or in all: lost: generated tokens whose readings never arrive;
    unedited: edited positions that it forgets; dropped: steps of which nothing is reported; deaf: nothing is ever
    reported; forgotten: it has no scores of prompt positions that come from the cache.
    """

    cached: int = 0
    per_step: int = 1
    ahead: bool = False
    late: int = 0
    preempted: tuple[int, ...] = ()
    poisoned: tuple[int, ...] = ()
    abort: int | None = None
    fails: bool = False
    faulty: int | None = None
    lost: tuple[int, ...] = ()
    unedited: int = 0
    dropped: tuple[int, ...] = ()
    deaf: bool = False
    forgotten: bool = False

    def of(self, sequence: int) -> "Behaviour":
        """How choice `sequence` is run."""
        if self.faulty in (None, sequence):
            return self
        return replace(self, lost=(), unedited=0, dropped=(), deaf=False, forgotten=False)


def decode(token: int) -> str:
    return f"«{token}»"


def read_text(token_ids: Sequence[int]) -> str:
    return "".join(map(decode, token_ids))


def encode(prompt: str) -> list[int]:
    return [BOS, *(2 + ord(c) % 97 for c in prompt)]


@lru_cache(maxsize=100_000)
def stream_at(sequence: int, position: int, layer: int) -> Float32:
    """The residual stream [d_model]; the sequence's number is its choice's index."""
    rng = np.random.default_rng([sequence, position, layer])
    return rng.standard_normal(D_MODEL).astype(np.float32)


def answer(sequence: int, n: int) -> list[int]:
    return [int(t) for t in np.random.default_rng([sequence, 99]).integers(2, 99, n)]


class Watched(Metrics):
    """Metrics that keep what they were told."""

    def __init__(self, outcomes: list[RequestOutcome], *args: Any) -> None:
        super().__init__(*args)
        self._outcomes = outcomes

    def observe(self, outcome: RequestOutcome) -> None:
        self._outcomes.append(outcome)
        super().observe(outcome)


@dataclass
class FakeServer:
    """The application and what tests look at from outside."""

    config: ServerConfig
    layout: EngineLayout = field(default_factory=EngineLayout)
    shape: ModelShape = SHAPE
    bos: int | None = BOS
    peers: Peers | None = None

    def __post_init__(self) -> None:
        self.metrics_registry = CollectorRegistry()
        self.sessions: list[RequestSession] = []
        self.outcomes: list[RequestOutcome] = []
        self.extension: RequestExtension
        self.extension, state = assemble(
            self.config,
            self.shape,
            self.layout,
            read_text,
            self.bos,
            lambda: Watched(self.outcomes, self.metrics_registry),
            self.peers,
        )
        self.app = FastAPI()
        PilothousePlugin().attach_router(self.app)
        self.delivered: list[bytes] = []
        self.delivery_error: Exception | None = None
        self.app.state.pilothouse = replace(state, deliver=self.deliver)
        for path in (CHAT, COMPLETIONS, "/v1/embeddings", "/inference/v1/generate", "/tokenize"):
            self.app.add_api_route(path, self.handle, methods=["POST"])

    async def deliver(self, direction: Direction) -> None:
        """Takes note of what an engine would be sent, or fails."""
        if self.delivery_error is not None:
            raise self.delivery_error
        self.delivered.append(direction.digest)

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        body = await request.json()
        if path not in (CHAT, COMPLETIONS):
            return JSONResponse({"served": path})
        fields = {k: v for k, v in body.items() if k not in _OPENAI_FIELDS}
        try:
            session = self.extension.open(fields, path, MODEL)
            self.sessions.append(session)
            run = Run(path, body, session)
        except BadRequest as error:
            return error_response(error)
        if body.get("stream"):
            return StreamingResponse(run.events(), media_type="text/event-stream")
        try:
            return JSONResponse(run.whole())
        except EngineGap as gap:
            session.close()
            return error_response(gap)


class Run:
    """One request."""

    def __init__(self, path: str, body: dict[str, Any], session: RequestSession) -> None:
        self.chat = path == CHAT
        self.session = session
        fake: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.get("fake", {}).items()}
        self.behaviour = Behaviour(**fake)
        self.max_tokens = body.get("max_tokens", 6)
        self.logprobs = bool(body.get("logprobs"))
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{body.get('user', 'fake')}"
        self.tracks: list[ChoiceTrack] = []
        self.spans: list[list[tuple[int, int]]] = []
        prompts = [body["messages"][-1]["content"]] if self.chat else body["prompt"]
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            self._add(encode(prompt), body.get("n", 1))

    def _add(self, ids: list[int], n: int) -> None:
        plan = self.session.plan
        track = PromptTrack(
            plan, ids, edit_spans(plan.edits, len(ids)), [ChoiceTrack(len(ids), len(plan.readouts)) for _ in range(n)]
        )
        self.session.add_prompt(track)
        self.tracks.extend(track.choices)
        self.spans.extend([track.spans] * n)

    def _steps(self, index: int) -> Iterator[list[int]]:
        live = [
            span
            for span, edit in zip(self.spans[index], self.session.plan.edits, strict=True)
            if not edit.is_identity()
        ]
        behaviour = self.behaviour.of(index)
        return steps(self.session.plan, live, self.tracks[index], index, self.max_tokens, behaviour)

    def whole(self) -> dict[str, Any]:
        self.session.set_response_id(self.id)
        choices = []
        for index in range(len(self.tracks)):
            list(self._steps(index))
        for index, track in enumerate(self.tracks):
            choice = self._choice(index, track.token_ids, whole=True)
            choice |= {"finish_reason": track.finish_reason, **self.session.decorate(index)}
            if choice["logprobs"]:
                for entry, scores in zip(choice["logprobs"]["content"], self.session.token_scores(index), strict=False):
                    if scores is not None:
                        entry["probe_scores"] = scores
            choices.append(choice)
        self.session.close()
        return {"id": self.id, "object": "chat.completion", "model": MODEL, "choices": choices}

    async def events(self) -> AsyncIterator[str]:
        """As the engine room relays them: a gap ends the stream."""
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    for part in self.session.rewrite_event(event):
                        yield part
        except EngineGap as gap:
            self.session.close()
            yield f"data: {json.dumps(error_body(gap))}\n\n"
            yield "data: [DONE]\n\n"

    async def _events(self) -> AsyncGenerator[str, None]:
        """As vLLM makes them."""
        self.session.set_response_id(self.id)
        live = {index: self._steps(index) for index in range(len(self.tracks))}
        first = True
        while live:
            for index in list(live):
                new = next(live[index], None)
                if new is None:
                    del live[index]
                    continue
                if first and self.chat:
                    for i in range(len(self.tracks)):
                        yield self._event(self._choice(i, [], role=True))
                    first = False
                choice = self._choice(index, new) | {"finish_reason": self.tracks[index].finish_reason}
                yield self._event(choice)
                if self.behaviour.fails:
                    yield 'data: {"error":{"message":"the engine died"}}\n\n'
                    yield "data: [DONE]\n\n"
                    self.session.close()
                    return
                if self.behaviour.abort is not None and len(self.tracks[index].token_ids) >= self.behaviour.abort:
                    self.session.close("aborted")
                    return
        yield f'data: {{"id":"{self.id}","choices":[],"usage":{{"total_tokens":1}}}}\n\n'
        yield "data: [DONE]\n\n"
        self.session.close()

    def _event(self, choice: dict[str, Any]) -> str:
        chunk = {"id": self.id, "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}
        return f"data: {json.dumps(chunk, separators=(',', ':'), ensure_ascii=False)}\n\n"

    def _choice(self, index: int, ids: list[int], role: bool = False, whole: bool = False) -> dict[str, Any]:
        text = "".join(map(decode, ids))
        message = {"role": "assistant", "content": text} if role or whole else {"content": text}
        spoken: dict[str, Any] = {("message" if whole else "delta"): message} if self.chat else {"text": text}
        content = {"content": [{"token": decode(t), "logprob": -1.0} for t in ids]}
        wanted = self.logprobs and self.chat and not role
        return {"index": index, **spoken, "logprobs": content if wanted else None, "finish_reason": None}


def steps(
    plan: Plan, spans: list[tuple[int, int]], track: ChoiceTrack, sequence: int, n: int, behaviour: Behaviour
) -> Iterator[list[int]]:
    """Run the sequence; yields the tokens of each step after the track has been told of them."""
    tokens = answer(sequence, n)
    read_from = 0 if plan.prompt_scores else track.n_prompt - 1
    forget = behaviour.unedited
    waiting: list[Reading] = []
    position, emitted = behaviour.cached, 0
    if read_from < position and not behaviour.forgotten:
        waiting.append(_kept(_reading(plan, sequence, read_from, position, 0, read_from, track.n_prompt, behaviour)))
    for step in itertools.count():
        if emitted == n:
            return
        if emitted in behaviour.preempted:
            position = behaviour.cached
        emitted = min(emitted + behaviour.per_step, n)
        end = track.n_prompt + emitted - 1 + (behaviour.ahead and emitted == n)
        edited = sum(any(a <= p < b for a, b in spans) for p in range(position, end))
        skipped, forget = min(forget, edited), forget - min(forget, edited)
        reading = _reading(plan, sequence, position, end, edited - skipped, read_from, track.n_prompt, behaviour)
        if not behaviour.deaf and step not in behaviour.dropped:
            waiting.append(reading)
        position = end
        done = emitted == n
        while waiting and (done or len(waiting) > behaviour.late):
            track.add(waiting.pop(0))
        new = tokens[len(track.token_ids) : emitted]
        track.token_ids.extend(new)
        track.finish_reason = "length" if done else None
        yield new


def _reading(
    plan: Plan, sequence: int, start: int, end: int, edited: int, read_from: int, n_prompt: int, behaviour: Behaviour
) -> Reading:
    runs = ((start, end - start, edited),) if end > start else ()
    lost = {n_prompt + j for j in behaviour.lost}
    positions = [p for p in range(max(start, read_from), end) if p not in lost]
    table = np.array([[_read(plan, sequence, p, k) for k in range(len(plan.readouts))] for p in positions], dtype="<f4")
    for row, p in enumerate(positions):
        if p - n_prompt in behaviour.poisoned:
            table[row] = np.inf if p % 2 else np.nan
    return Reading(runs, tuple((p, 1) for p in positions), table.tobytes())


def _kept(reading: Reading) -> Reading:
    """The same scores of positions that were not forwarded."""
    return Reading((), reading.score_runs, reading.scores)


def _read(plan: Plan, sequence: int, position: int, k: int) -> float:
    layers = plan.readouts[k].direction.layers
    return float(sum(np.dot(stream_at(sequence, position, layer), row) for layer, row in layers.items()))
