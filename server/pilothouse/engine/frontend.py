"""vLLM's OpenAI handlers with sessions: the request's extra fields in, scores and receipts out.

Seam: `OpenAIServingChat` and `OpenAIServingCompletion`, whose instances in the application's state get a subclass as
their class, so every flag that vLLM gave them stays in force. vLLM's routes, parsers and models are used as they are.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath

from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.errors import BadRequest, EngineGap, StartupError
from pilothouse.core.serving import RequestExtension, RequestSession
from pilothouse.core.sites import ModelShape
from pilothouse.engine.client import NullSession, SteeringClient, current_session
from pilothouse.engine.runner import layout_of
from pilothouse.engine.support import model_shape

logger = logging.getLogger(__name__)

MakeExtension = Callable[[ModelShape, EngineLayout, Callable[[int], str], int | None], RequestExtension]

if TYPE_CHECKING:
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing as _Base
else:
    _Base = object


class SteeringServing(_Base):
    """What both handlers share."""

    pilothouse_extension: RequestExtension

    async def _with_session(self, route: str, request: Any, create: Callable[[], Any]) -> Any:
        """Open a session, let vLLM do the request, put the session's findings into the response."""
        fields = dict(request.model_extra or {})
        beams = bool(getattr(request, "use_beam_search", False))
        try:
            names = [path.name for path in self.models.base_model_paths]
            name = request.model if request.model in names else names[0]
            session = self.pilothouse_extension.open({**fields, "use_beam_search": beams}, route, name)
        except BadRequest as error:
            return self.create_error_response(str(error), param=error.param)
        token = current_session.set(cast(RequestSession, NullSession()) if beams else session)
        try:
            result = await create()
        except BadRequest as error:
            session.close(str(error))
            return self.create_error_response(str(error), param=error.param)
        except BaseException as error:
            session.close(type(error).__name__)
            raise
        finally:
            current_session.reset(token)
        if hasattr(result, "choices"):
            session.set_response_id(result.id)
            try:
                _decorate(result, session, (request.logprobs or None) is not None)
            except EngineGap as gap:
                session.close(str(gap))
                return self.create_error_response(gap)
            session.close()
        elif hasattr(result, "error"):
            session.close(result.error.message)
        elif beams:
            return _without_session(result)
        return result

    async def _relay(self, session: RequestSession, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The stream with scores put in; the session ends with it, however it ends.

        A gap ends it as vLLM's own errors do, whichever choice it is in, and what still runs is given up.
        """
        error: str | None = "aborted"
        try:
            async with aclosing(events):
                async for event in events:
                    yield session.rewrite_event(event)
            error = None
        except EngineGap as gap:
            # The record must be there before the client can know that the response has ended.
            session.close(str(gap))
            yield f"data: {self.create_streaming_error_response(gap)}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as failure:
            logger.exception("scores could not be put into the stream")
            error = type(failure).__name__
            yield f"data: {self.create_streaming_error_response(failure)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            session.close(error)


class SteeringChat(SteeringServing, OpenAIServingChat):
    """`/v1/chat/completions`."""

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        def create() -> Any:
            return OpenAIServingChat.create_chat_completion(self, request, raw_request)

        return await self._with_session("/v1/chat/completions", request, create)

    def chat_completion_stream_generator(self, request: Any, result_generator: Any, request_id: str, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
        events = super().chat_completion_stream_generator(request, result_generator, request_id, *a, **k)
        return _bound(self, request_id, events)


class SteeringCompletion(SteeringServing, OpenAIServingCompletion):
    """`/v1/completions`."""

    async def create_completion(self, request: Any, raw_request: Any = None) -> Any:
        def create() -> Any:
            return OpenAIServingCompletion.create_completion(self, request, raw_request)

        return await self._with_session("/v1/completions", request, create)

    def completion_stream_generator(self, request: Any, inputs: Any, results: Any, request_id: str, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
        events = super().completion_stream_generator(request, inputs, results, request_id, *a, **k)
        return _bound(self, request_id, events)


def _bound(serving: SteeringServing, request_id: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Tie a stream to the session of the context that makes it; it is read in another context."""
    session = current_session.get()
    if session is None or isinstance(session, NullSession):
        return events
    session.set_response_id(request_id)
    return serving._relay(session, events)


async def _without_session(events: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Beams are searched while the stream is read: nothing of that is watched."""
    iterator = aiter(events)
    while True:
        token = current_session.set(cast(RequestSession, NullSession()))
        try:
            event = await anext(iterator)
        except StopAsyncIteration:
            return
        finally:
            current_session.reset(token)
        yield event


def _decorate(response: Any, session: RequestSession, with_logprobs: bool) -> None:
    for choice in response.choices:
        for key, value in session.decorate(choice.index).items():
            setattr(choice, key, value)
        content = getattr(choice.logprobs, "content", None) if with_logprobs else None
        if content:
            for entry, scores in zip(content, session.token_scores(choice.index), strict=False):
                if scores is not None:
                    entry.probe_scores = scores


def _name_presets(models: Any, extension: RequestExtension) -> None:
    """Let vLLM list and accept the model's further names. Its registry keeps the same list."""
    for path in list(models.base_model_paths):
        for name in extension.model_names(path.name):
            models.base_model_paths.append(BaseModelPath(name=name, model_path=path.model_path))
    if models.registry.base_model_paths is not models.base_model_paths:
        raise StartupError("vLLM keeps two lists of the served models' names: presets cannot be named")


def install(
    engine_client: Any,
    state: Any,
    make_extension: MakeExtension,
    max_direction_bytes: int = Limits().adhoc_cache_bytes,
) -> SteeringClient:
    """Swap in the seams of the API process; raises StartupError rather than leave any of them out.

    max_direction_bytes: directions that no live request needs are forgotten, oldest first, beyond this much content.
    """
    vllm_config = engine_client.vllm_config
    layout = layout_of(vllm_config)
    shape = model_shape(vllm_config, layout.sites)
    tokenizer = engine_client.renderer.tokenizer
    if tokenizer is None:
        raise StartupError("--skip-tokenizer-init leaves prompts without token ids: nothing could be steered")
    names = [path.name for path in state.openai_serving_models.base_model_paths]
    shape = replace(shape, model=names[0])
    extension = make_extension(shape, layout, lambda token: tokenizer.decode([token]), tokenizer.bos_token_id)
    _name_presets(state.openai_serving_models, extension)
    client = SteeringClient(
        engine_client, layout, lambda: extension.open_default("other", shape.model), max_direction_bytes
    )
    client.install()
    for name, served, steering in (
        ("openai_serving_chat", OpenAIServingChat, SteeringChat),
        ("openai_serving_completion", OpenAIServingCompletion, SteeringCompletion),
    ):
        handler = getattr(state, name, None)
        if handler is None:
            continue
        if type(handler) is not served:
            raise StartupError(f"{name} is a {type(handler).__name__}, not vLLM's own handler")
        handler.__class__ = steering
        handler.pilothouse_extension = extension
    return client
