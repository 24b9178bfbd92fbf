"""The API process's end of the engine: plans go out with requests, readings come back with outputs.

Seams, each on the one `AsyncLLM` instance of the process: `generate` (a plan for every request, forged keys refused),
`engine_core.add_request_async` (content of new directions rides with the first request that needs it, in the order in
which its engine receives requests; with data parallelism `engine_core.get_core_engine_for_request` says which engine
that is, and is asked before vLLM asks it), `output_processor.process_outputs` (readings are taken off before vLLM
merges chunks or shows `kv_transfer_params` to the client).
"""

import copy
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import numpy as np
import torch
from vllm.renderers.inputs.preprocess import extract_prompt_components
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import FinishReason

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import BadRequest
from pilothouse.core.messages import (
    DIRECTIONS_KEY,
    LIVE_KEY,
    NONCE_KEY,
    PLAN_KEY,
    READING_KEY,
    RESERVED_KEYS,
    LiveReadings,
    StepCost,
    directions_encoder,
    live_decoder,
    plan_encoder,
    reading_decoder,
)
from pilothouse.core.plans import Plan
from pilothouse.core.records import NO_TOKEN_IDS
from pilothouse.core.serving import RequestSession
from pilothouse.core.tracks import ChoiceTrack, PromptTrack, waves
from pilothouse.engine.courier import Couriers
from pilothouse.engine.wire import largest_edit, resolve

current_session: ContextVar["RequestSession | NullSession | None"] = ContextVar("pilothouse_session", default=None)
"""The session of the HTTP request being handled, from its validation until its requests are handed to the engine."""


class NullSession:
    """Stands in for the session while vLLM searches beams: it rebuilds its requests, so nothing can be carried."""

    plan = Plan()
    asked = None

    def add_prompt(self, track: PromptTrack) -> None:
        return None

    def shows_tokens(self, logprobs: bool) -> bool:
        return False

    def close(self, error: str | None = None) -> None:
        return None


@dataclass
class PlanSession:
    """A request of this process's own, with one prompt: what a `RequestSession` is to this client."""

    plan: Plan
    track: PromptTrack | None = None
    asked: str | None = "prompt"

    def add_prompt(self, track: PromptTrack) -> None:
        self.track = track

    def shows_tokens(self, logprobs: bool) -> bool:
        return False

    def close(self, error: str | None = None) -> None:
        return None


class SteeringClient:
    """Wraps one vLLM engine client in place."""

    def __init__(
        self,
        engine_client: Any,
        layout: EngineLayout,
        open_default: Callable[[], RequestSession],
        max_bytes: int,
        spent: Callable[[StepCost], None] = lambda cost: None,
    ) -> None:
        """spent: told what the steps of the engine's worker cost."""
        self._engine = engine_client
        self._layout = layout
        self._open_default = open_default
        self._spent = spent
        self.couriers = Couriers(max_bytes)
        self._nonces = itertools.count()
        # Weak: whoever waits for the outputs keeps the tracks alive, so nothing is left of a request that is given up.
        self._prompts: WeakValueDictionary[int, PromptTrack] = WeakValueDictionary()
        self._choices: WeakValueDictionary[str, ChoiceTrack] = WeakValueDictionary()
        self._tracks: WeakValueDictionary[str, PromptTrack] = WeakValueDictionary()
        config = engine_client.model_config
        self._largest = largest_edit(config.get_hidden_size(), torch.finfo(config.dtype).max)
        self._keep_originals()

    def _keep_originals(self) -> None:
        """The engine client's own methods, which ours call."""
        self._generate = self._engine.generate
        self._add_request = self._engine.engine_core.add_request_async
        self._process_outputs = self._engine.output_processor.process_outputs

    def install(self) -> None:
        """Put this client's methods in the place of the engine client's."""
        self._engine.generate = self.generate
        self._engine.engine_core.add_request_async = self.add_request_async
        self._engine.output_processor.process_outputs = self.process_outputs

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """vLLM's `generate` with the current session's plan, or the server's default probes.

        Not a coroutine: the session is that of the caller's context, whenever the outputs are read.
        """
        refuse_reserved(sampling_params)
        session = current_session.get()
        owned: RequestSession | None = None
        if session is None:
            session = owned = self._open_default()
        ids = self._token_ids(prompt)
        if ids is None:
            _need_token_ids(session)
            # Realtime input and prompts of embeddings have no token ids: default probes do not watch them, and say so.
            session.close(NO_TOKEN_IDS)
            return self._generate(prompt, sampling_params, request_id, **kwargs)  # type: ignore[no-any-return]
        # A copy: vLLM's beam search gives the same parameters to many requests.
        sampling_params = copy.copy(sampling_params)
        track = self._track(session, ids, sampling_params)
        session.add_prompt(track)
        inner = self._generate(prompt, sampling_params, request_id, **kwargs)
        return self._relay(inner, track, sampling_params, owned)

    def check(self, session: RequestSession, prompt: Any, sampling_params: Any) -> None:
        """BadRequest where `generate` would raise it, for handlers that call that only once an answer has begun."""
        refuse_reserved(sampling_params)
        ids = self._token_ids(prompt)
        if ids is None:
            _need_token_ids(session)
        elif not session.plan.empty:
            resolve(session.plan, len(ids), self._layout, self._largest)

    async def add_request_async(self, request: Any) -> None:
        """vLLM's `add_request_async`, with the content of directions that the engine has not been sent."""
        with self._packed(request):
            await self._add_request(request)

    @contextmanager
    def _packed(self, request: Any) -> Iterator[None]:
        """Around the sending of `request`: what the engine has not been sent goes along, readings are awaited."""
        track = self._track_of(request)
        if track is None:
            yield
            return
        state = self._engine.output_processor.request_states[request.request_id]
        self._choices[request.request_id] = track.choices[state.request_index or 0]
        self._tracks[request.request_id] = track
        courier = self.couriers.to(self._engine_of(request))
        parcel = courier.parcel(track.plan.directions)
        if parcel is not None:
            params = request.sampling_params = copy.copy(request.sampling_params)
            params.extra_args = {**params.extra_args, DIRECTIONS_KEY: directions_encoder.encode(parcel)}
        try:
            yield
        except BaseException:
            if parcel is not None:
                courier.returned(parcel)
            raise
        if parcel is not None:
            courier.arrived(parcel)

    def process_outputs(self, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        """vLLM's `process_outputs`; readings come off first."""
        for output in engine_core_outputs:
            if output.kv_transfer_params:
                self._take_readings(output)
            if output.finish_reason == FinishReason.ERROR and output.request_id in self._tracks:
                # vLLM may have dropped the request before the scheduler saw it, and with it what it carried.
                self.couriers.lost(d.digest for d in self._tracks[output.request_id].plan.directions)
        return self._process_outputs(engine_core_outputs, *args, **kwargs)

    def _take_readings(self, output: Any) -> None:
        """Take off what was read of this request, and of others in the same step."""
        params = output.kv_transfer_params
        alone, live = params.pop(READING_KEY, None), params.pop(LIVE_KEY, None)
        output.kv_transfer_params = params or None
        if live is not None:
            for readings in live_decoder.decode(live):
                self._take_live(readings)
        if alone is not None:
            reading = reading_decoder.decode(alone)
            if reading.cost.steps:
                self._spent(reading.cost)
            choice = self._choices.get(output.request_id)
            if choice is not None:
                choice.add(reading)

    def _take_live(self, readings: LiveReadings) -> None:
        if readings.cost.steps:
            self._spent(readings.cost)
        table = (
            np.frombuffer(readings.scores, dtype="<f4").reshape(len(readings.request_ids), -1)
            if readings.scores
            else None
        )
        choices = [self._choices.get(request_id) for request_id in readings.request_ids]
        places = [None] * len(choices) if table is None else waves(table, choices)
        told = zip(choices, readings.starts, readings.edited, places, strict=True)
        for choice, start, edited, place in told:
            if choice is not None:
                choice.add_position(start + readings.advanced, edited, place)

    def _engine_of(self, request: Any) -> bytes:
        """The engine that `request` goes to. vLLM's data parallel client chooses it, and keeps to its choice when it is
        asked for the same request again."""
        choose = getattr(self._engine.engine_core, "get_core_engine_for_request", None)
        return b"" if choose is None else bytes(choose(request))

    def _token_ids(self, prompt: Any) -> list[int] | None:
        if not isinstance(prompt, dict):
            return None
        ids = extract_prompt_components(self._engine.model_config, prompt).token_ids
        return list(ids) if ids else None

    def _track(self, session: "RequestSession | NullSession", ids: list[int], sampling_params: Any) -> PromptTrack:
        """The track of a prompt; the session's plan, if it has one, goes into the request's extra arguments."""
        plan = session.plan
        choices = [ChoiceTrack(len(ids), len(plan.readouts)) for _ in range(sampling_params.n)]
        if plan.empty:
            return PromptTrack(plan, ids, [], choices)
        wire, spans = resolve(plan, len(ids), self._layout, self._largest)
        track = PromptTrack(plan, ids, spans, choices)
        nonce = next(self._nonces)
        self._prompts[nonce] = track
        wire = msgspec.structs.replace(wire, gather=may_gather(session, sampling_params))
        extra = {PLAN_KEY: plan_encoder.encode(wire), NONCE_KEY: nonce}
        sampling_params.extra_args = {**(sampling_params.extra_args or {}), **extra}
        return track

    def _track_of(self, request: Any) -> PromptTrack | None:
        params = request.sampling_params
        if params is None or not params.extra_args or NONCE_KEY not in params.extra_args:
            return None
        return self._prompts[params.extra_args[NONCE_KEY]]

    async def _relay(
        self, inner: AsyncGenerator[Any, None], track: PromptTrack, params: Any, owned: RequestSession | None
    ) -> AsyncGenerator[Any, None]:
        directions = track.plan.directions
        self.couriers.hold(directions)
        deltas = params.output_kind == RequestOutputKind.DELTA
        error: str | None = "aborted"
        try:
            async with aclosing(inner) as outputs:
                async for result in outputs:
                    observe(track, result, deltas)
                    if result.finished:
                        error = None
                    yield result
        finally:
            self.couriers.drop(directions)
            if owned is not None:
                owned.close(error)


def _need_token_ids(session: "RequestSession | NullSession") -> None:
    if session.asked is not None:
        raise BadRequest("steering and probes need a prompt of token ids", "prompt")


def may_gather(session: "RequestSession | NullSession", params: Any) -> bool:
    """Whether readings need not come with each token. Where vLLM ends a sequence at a string, it does so in this
    process, and what the engine still held back would never come."""
    streams = params.output_kind != RequestOutputKind.FINAL_ONLY
    return not params.stop and not (streams and session.shows_tokens(params.logprobs is not None))


def observe(track: PromptTrack, result: Any, deltas: bool) -> None:
    """Take an output of vLLM in: generated tokens and why sequences ended; deltas: it holds only what is new."""
    for output in result.outputs:
        choice = track.choices[output.index]
        if deltas:
            choice.token_ids.extend(output.token_ids)
        else:
            choice.token_ids = list(output.token_ids)
        if output.finish_reason is not None:
            choice.finish_reason = output.finish_reason


def refuse_reserved(sampling_params: Any) -> None:
    """BadRequest for keys in a request's extra arguments that are this client's own."""
    extra = sampling_params.extra_args
    if extra and (forged := [key for key in RESERVED_KEYS if key in extra]):
        raise BadRequest(f"{forged[0]} is reserved", "vllm_xargs")
    transfer = extra.get("kv_transfer_params") if extra else None
    if isinstance(transfer, dict) and (forged := [key for key in (READING_KEY, LIVE_KEY) if key in transfer]):
        raise BadRequest(f"{forged[0]} is reserved", "kv_transfer_params")
