"""vLLM's OpenAI handlers with sessions: the request's extra fields in, scores and receipts out.

Seam: `OpenAIServingChat`, `OpenAIServingCompletion`, `OpenAIServingResponses` and `AnthropicServingMessages`, whose
instances in the application's state get a subclass as their class, so every flag that vLLM gave them stays in force.
vLLM's routes, parsers and models are used as they are.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.errors import StartupError
from pilothouse.core.serving import RequestExtension, RequestSession
from pilothouse.core.sites import ModelShape
from pilothouse.engine.anthropic import SteeringMessages
from pilothouse.engine.client import SteeringClient
from pilothouse.engine.responses import SteeringResponses
from pilothouse.engine.runner import layout_of
from pilothouse.engine.sessions import SteeringServing, relay, request_session
from pilothouse.engine.support import model_shape

MakeExtension = Callable[[ModelShape, EngineLayout, Callable[[Sequence[int]], str], int | None], RequestExtension]
"""Given the model's shape, the engine's layout, what reads token ids, and the id that begins a sequence."""


class OpenAIChoices(SteeringServing):
    """What the two handlers share whose responses consist of choices."""

    def _searches_beams(self, request: Any) -> bool:
        return bool(request.use_beam_search)

    def _finish(self, result: Any, session: RequestSession, request: Any) -> Any:
        if not hasattr(result, "choices"):
            return super()._finish(result, session, request)
        session.set_response_id(result.id)
        _decorate(result, session, (request.logprobs or None) is not None)
        session.close()
        return result

    def _relay(self, session: RequestSession, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        return relay(session, events, session.rewrite_event, self._failed)

    def _failed(self, error: Exception) -> Iterator[str]:
        yield f"data: {self.create_streaming_error_response(error)}\n\n"
        yield "data: [DONE]\n\n"


class SteeringChat(OpenAIChoices, OpenAIServingChat):
    """`/v1/chat/completions`."""

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        def create() -> Any:
            return OpenAIServingChat.create_chat_completion(self, request, raw_request)

        return await self._with_session("/v1/chat/completions", request, create)

    def chat_completion_stream_generator(self, request: Any, result_generator: Any, request_id: str, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
        events = super().chat_completion_stream_generator(request, result_generator, request_id, *a, **k)
        return _bound(self, request_id, events)


class SteeringCompletion(OpenAIChoices, OpenAIServingCompletion):
    """`/v1/completions`."""

    async def create_completion(self, request: Any, raw_request: Any = None) -> Any:
        def create() -> Any:
            return OpenAIServingCompletion.create_completion(self, request, raw_request)

        return await self._with_session("/v1/completions", request, create)

    def completion_stream_generator(self, request: Any, inputs: Any, results: Any, request_id: str, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
        events = super().completion_stream_generator(request, inputs, results, request_id, *a, **k)
        return _bound(self, request_id, events)


def _bound(serving: OpenAIChoices, request_id: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Tie a stream to the session of the context that makes it; it is read in another context."""
    session = request_session()
    if session is None:
        return events
    session.set_response_id(request_id)
    return serving._relay(session, events)


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
    extension = make_extension(
        shape, layout, lambda token_ids: tokenizer.decode(list(token_ids)), tokenizer.bos_token_id
    )
    _name_presets(state.openai_serving_models, extension)
    client = SteeringClient(
        engine_client,
        layout,
        lambda: extension.open_default("other", shape.model),
        max_direction_bytes,
        partial(extension.spent, shape.model),
    )
    client.install()
    for name, served, steering in (
        ("openai_serving_chat", OpenAIServingChat, SteeringChat),
        ("openai_serving_completion", OpenAIServingCompletion, SteeringCompletion),
        ("openai_serving_responses", OpenAIServingResponses, SteeringResponses),
        ("anthropic_serving_messages", AnthropicServingMessages, SteeringMessages),
    ):
        handler = getattr(state, name, None)
        if handler is None:
            continue
        if type(handler) is not served:
            raise StartupError(f"{name} is a {type(handler).__name__}, not vLLM's own handler")
        handler.__class__ = steering
        handler.pilothouse_extension = extension
        handler.pilothouse_client = client
    return client
