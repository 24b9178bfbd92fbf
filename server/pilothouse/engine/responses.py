"""`/v1/responses` with sessions.

Seams: `OpenAIServingResponses.create_responses`, `_generate_with_builtin_tools` (called while the request is handled,
read when the answer is), `responses_full_generator` (makes the finished response, streamed or not, stored or not),
`responses_stream_generator` and `responses_background_stream_generator` (events are objects; the route makes text of
them).
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from openai.types.responses import ResponseFailedEvent as OpenAIResponseFailedEvent
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from pilothouse.core.errors import BadRequest, EngineGap
from pilothouse.core.serving import RequestSession
from pilothouse.engine.client import NullSession
from pilothouse.engine.sessions import SteeringServing, relay, request_session, within

logger = logging.getLogger(__name__)

ROUTE = "/v1/responses"


class ResponseFailedEvent(OpenAIResponseFailedEvent):
    """OpenAI's event with vLLM's response in it, as vLLM makes those that it sends."""

    response: ResponsesResponse


class SteeringResponses(SteeringServing, OpenAIServingResponses):
    """The handler. A response's context carries its session, since background responses outlive their request."""

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        def create() -> Any:
            return OpenAIServingResponses.create_responses(self, request, raw_request)

        return await self._with_session(ROUTE, request, create)

    def _generate_with_builtin_tools(
        self, *, engine_input: Any, sampling_params: Any, context: Any, **more: Any
    ) -> AsyncGenerator[Any, None]:
        """vLLM's generator, with the session whenever it is read; what is wrong with the request is said at once."""
        session = request_session()
        watched: RequestSession | NullSession | None = session
        if session is not None and getattr(context, "available_tools", None):
            # The server calls tools and generates again: no one sequence is the response's.
            if session.asked is not None:
                raise BadRequest("a response with built-in tools can be neither steered nor probed", session.asked)
            # Each generation is watched for itself, by the server's default probes, unless none are wanted.
            watched, session = NullSession() if session.plan.empty else None, None
        if session is not None:
            self.pilothouse_client.check(session, engine_input, sampling_params)
            session.set_response_id(more["request_id"])
        context.pilothouse_session = session
        inner = super()._generate_with_builtin_tools(
            engine_input=engine_input, sampling_params=sampling_params, context=context, **more
        )
        return within(watched, inner)

    async def responses_full_generator(
        self, request: Any, sampling_params: Any, results: Any, context: Any, *a: Any, **k: Any
    ) -> Any:
        """The finished response with the session's findings; the session ends here, before anyone can read it."""
        session: RequestSession | None = context.pilothouse_session
        try:
            response = await super().responses_full_generator(request, sampling_params, results, context, *a, **k)
        except BaseException as error:
            if session is not None:
                session.close(type(error).__name__)
            raise
        if session is None:
            return response
        if not isinstance(response, ResponsesResponse):
            session.close(response.error.message)
            return response
        try:
            for key, value in session.decorate(0).items():
                setattr(response, key, value)
        except EngineGap as gap:
            session.close(str(gap))
            # It may have been stored, as complete, and nobody waits for what happens in the background.
            _mark_failed(response, gap)
            if request.background and not request.stream:
                return self.create_error_response(gap)
            raise
        session.close()
        return response

    def responses_stream_generator(  # type: ignore[no-untyped-def]
        self, request: Any, sampling_params: Any, results: Any, context: Any, *a: Any, **k: Any
    ):
        events = super().responses_stream_generator(request, sampling_params, results, context, *a, **k)
        session: RequestSession | None = context.pilothouse_session
        if session is None:
            return events
        stream = _Stream(session)
        return relay(session, events, lambda event: (stream.rewrite(event),), stream.failed)

    async def responses_background_stream_generator(self, *a: Any, **k: Any) -> AsyncIterator[Any]:
        """vLLM's, which waits for the completion of a response that has failed for ever."""
        async for event in super().responses_background_stream_generator(*a, **k):
            yield event
            if isinstance(event, ResponseFailedEvent):
                return


class _Stream:
    """The events of one response."""

    def __init__(self, session: RequestSession) -> None:
        self._session = session
        self._created: ResponsesResponse | None = None
        self._sent = 0

    def rewrite(self, event: Any) -> Any:
        """`event` with the scores that are known by now."""
        self._sent += 1
        if event.type == "response.created":
            self._created = event.response
        finished = event.type == "response.completed"
        if (finished or event.type.endswith(".delta")) and (block := self._session.new_scores(0, finished)):
            event.probe_scores = block
        return event

    def failed(self, error: Exception) -> Iterator[Any]:
        """OpenAI's own end of a response that has failed; nothing where not even its beginning was sent."""
        if self._created is None:
            return
        response = self._created.model_copy()
        _mark_failed(response, error)
        yield ResponseFailedEvent(type="response.failed", sequence_number=self._sent, response=response)


def _mark_failed(response: ResponsesResponse, error: Exception) -> None:
    response.status = "failed"
    response.error = {"code": "server_error", "message": str(error) or type(error).__name__}
