"""The client of vLLM's synchronous engine, which its `LLM` drives: sessions go with requests, findings with outputs.

Seams, each on the one `LLMEngine`: `add_request` (a plan for every request, forged keys refused),
`engine_core.add_request` (content of new directions), `output_processor.process_outputs` (readings come off).
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import BadRequest, EngineGap, StartupError
from pilothouse.core.serving import RequestSession
from pilothouse.core.tracks import PromptTrack
from pilothouse.engine.client import SteeringClient, observe, refuse_reserved

logger = logging.getLogger(__name__)

SHOWN = ("steering", "probes")
"""What every choice has as attributes beside vLLM's own; None where it was not asked for."""


@dataclass(frozen=True)
class _Running:
    """A request that the engine has."""

    session: RequestSession
    track: PromptTrack


class LLMClient(SteeringClient):
    """Wraps one `LLMEngine` in place."""

    def __init__(self, llm_engine: Any, layout: EngineLayout, max_bytes: int) -> None:
        super().__init__(llm_engine, layout, _no_defaults, max_bytes)
        self._sessions: Iterator[RequestSession] = iter(())
        self._added: list[tuple[str, str]] = []
        self._running: dict[str, _Running] = {}

    def _keep_originals(self) -> None:
        self._add = self._engine.add_request
        self._send = self._engine.engine_core.add_request
        self._process_outputs = self._engine.output_processor.process_outputs

    def install(self) -> None:
        self._engine.add_request = self.add_request
        self._engine.engine_core.add_request = self.send
        self._engine.output_processor.process_outputs = self.process_outputs

    @contextmanager
    def carrying(self, sessions: Sequence[RequestSession]) -> Iterator[None]:
        """Requests that are added within go with these sessions, one each, in order; others are plain.

        Whatever ends the block early, Ctrl-C as well, the engine gives up what was added: the outputs of the next call
        must be those of its own prompts.
        """
        self._sessions, self._added = iter(sessions), []
        try:
            yield
        except BaseException:
            self._give_up(self._added)
            raise
        finally:
            self._sessions = iter(())

    def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> str:
        """vLLM's `add_request` with the plan of the next session; the id by which the engine knows the request."""
        if not isinstance(params, SamplingParams):
            return str(self._add(request_id, prompt, params, *args, **kwargs))
        refuse_reserved(params)
        session = next(self._sessions, None)
        ids = None if session is None else self._token_ids(prompt)
        if session is None or ids is None:
            if session is not None and not session.plan.empty:
                raise BadRequest("steering and probes need a prompt of token ids or text", "prompts")
            return str(self._add(request_id, prompt, params, *args, **kwargs))
        params = copy.copy(params)
        track = self._track(session, ids, params)
        session.add_prompt(track)
        self._running[request_id] = _Running(session, track)
        self.couriers.hold(track.plan.directions)
        try:
            added = str(self._add(request_id, prompt, params, *args, **kwargs))
        except BaseException:
            self._forget(request_id)
            raise
        self._added.append((request_id, added))
        return added

    def send(self, request: Any) -> None:
        """The engine core's `add_request`, with the content of directions that it has not been sent."""
        with self._packed(request):
            self._send(request)

    def finish(self, output: Any) -> RequestSession | None:
        """Take in the finished output of a request; its session, if it went with one."""
        running = self._forget(output.request_id)
        if running is None:
            return None
        observe(running.track, output, deltas=False)
        return running.session

    def decorate(self, outputs: Sequence[Any]) -> None:
        """Set what the sessions found on the choices of finished outputs; EngineGap, naming the prompt, when the engine
        left out what was asked for."""
        faults: list[str] = []
        for number, output in enumerate(outputs):
            session = self.finish(output)
            for choice in output.outputs:
                for key in SHOWN:
                    setattr(choice, key, None)
                try:
                    found = {} if session is None else session.decorate(choice.index)
                except EngineGap as gap:
                    faults.append(f"prompt {number}: {gap}")
                    continue
                for key, value in found.items():
                    setattr(choice, key, value)
        if faults:
            more = f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""
            raise EngineGap(faults[0] + more)

    def clear(self) -> None:
        """No request is left in the engine: what is still noted was given up behind this client's back."""
        for request_id in list(self._running):
            self._forget(request_id)

    def _forget(self, request_id: str) -> _Running | None:
        running = self._running.pop(request_id, None)
        if running is not None:
            self.couriers.drop(running.track.plan.directions)
        return running

    def _give_up(self, added: list[tuple[str, str]]) -> None:
        """Requests by the id that they were given and the one that the engine knows them by."""
        for request_id, _ in added:
            self._forget(request_id)
        try:
            self._engine.abort_request([known_as for _, known_as in added], internal=True)
        except Exception:
            # An engine that has died cannot give anything up; why it died is what the caller must hear.
            logger.exception("requests that failed could not be given up")


def _no_defaults() -> RequestSession:
    raise StartupError("an in-process engine has no default probes")
