"""`/v1/messages` with sessions.

Seams: `AnthropicServingMessages.create_messages` (which has its own chat handler answer a chat request and converts
what comes back) and `message_stream_converter`. vLLM's model of the request drops what it does not know, so our fields
are taken from the body, which FastAPI keeps.
"""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages, wrap_data_with_event

from pilothouse.core.errors import BadRequest
from pilothouse.core.serving import RequestSession
from pilothouse.engine.sessions import SteeringServing, relay, request_session

ROUTE = "/v1/messages"

_DELTA, _END, _ERROR = (f"event: {name}\n" for name in ("content_block_delta", "message_delta", "error"))


class SteeredMessage(AnthropicMessagesResponse):
    """vLLM's response with room for more."""

    model_config = ConfigDict(extra="allow")


class SteeringMessages(SteeringServing, AnthropicServingMessages):
    """The handler."""

    async def create_messages(self, request: Any, raw_request: Any = None) -> Any:
        def create() -> Any:
            return AnthropicServingMessages.create_messages(self, request, raw_request)

        body = await raw_request.json()
        fields = {key: value for key, value in body.items() if key not in AnthropicMessagesRequest.model_fields}
        return await self._with_session(ROUTE, request, create, fields)

    def _refuse(self, error: BadRequest) -> Any:
        """Anthropic's error bodies have no `param`, so the message names the field, as Anthropic's own do."""
        return self.create_error_response(f"{error.param}: {error}" if error.param else str(error))

    def _finish(self, result: Any, session: RequestSession, request: Any) -> Any:
        if not isinstance(result, AnthropicMessagesResponse):
            return super()._finish(result, session, request)
        session.set_response_id(result.id)
        extras = session.decorate(0)
        session.close()
        return SteeredMessage.model_construct(result.model_fields_set | extras.keys(), **dict(result), **extras)

    def chat_completion_stream_generator(self, request: Any, results: Any, request_id: str, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
        session = request_session()
        if session is not None:
            session.set_response_id(request_id)
        return super().chat_completion_stream_generator(request, results, request_id, *a, **k)

    def message_stream_converter(self, generator: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        events: AsyncGenerator[str, None] = super().message_stream_converter(generator)
        session = request_session()
        if session is None:
            return events
        return relay(session, events, lambda event: (_rewrite(session, event),), self._failed)

    def _failed(self, error: Exception) -> Iterator[str]:
        info = self.create_error_response(error).error
        body = {"type": "error", "error": {"type": info.type, "message": info.message}}
        yield wrap_data_with_event(json.dumps(body), "error")


def _rewrite(session: RequestSession, event: str) -> str:
    """One event with what is known by now: scores on a piece of content, the outcome on the message's end."""
    if event.startswith(_ERROR):
        # vLLM ends such a stream as it ends any other, so nobody else will say that it failed.
        session.close(_data(event)["error"]["message"])
    if event.startswith(_DELTA):
        return _with(event, {"probe_scores": block}) if (block := session.new_scores(0, finished=False)) else event
    if not event.startswith(_END):
        return event
    extras = session.decorate(0)
    if block := session.new_scores(0, finished=True):
        extras = {**extras, "probe_scores": block}
    # The record must be there before the client can know that the response has ended.
    session.close()
    return _with(event, extras)


def _data(event: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(event.partition("\ndata: ")[2])
    return data


def _with(event: str, extras: Mapping[str, Any]) -> str:
    if not extras:
        return event
    data = json.dumps({**_data(event), **extras}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    name = event.partition("\n")[0].removeprefix("event: ")
    return str(wrap_data_with_event(data, name))
