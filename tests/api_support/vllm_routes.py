"""vLLM's own Responses and Messages routes, handlers and converters, with ours around them, over an engine made up.

What a client sends as `vllm_xargs.fake` is the engine's `Behaviour`, in JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from fastapi import FastAPI
from vllm.entrypoints.anthropic.api_router import attach_router as attach_messages
from vllm.entrypoints.openai.responses.api_router import attach_router as attach_responses
from vllm.exceptions import GenerationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from api_support.fake_engine import MODEL, Behaviour, FakeServer, decode, encode, steps
from pilothouse.api.guard import FieldGuard
from pilothouse.core.config import EngineLayout
from pilothouse.core.messages import NONCE_KEY, Reading
from pilothouse.core.tracks import ChoiceTrack, PromptTrack
from pilothouse.engine.anthropic import SteeringMessages
from pilothouse.engine.client import SteeringClient
from pilothouse.engine.responses import SteeringResponses


@dataclass
class Echo(ChoiceTrack):
    """What the engine knows of a sequence; its readings go on to the track of whoever asked."""

    asked: ChoiceTrack | None = None

    def add(self, reading: Reading) -> None:
        super().add(reading)
        if self.asked is not None:
            self.asked.add(reading)


class FakeVllm:
    """An application with both routes. store: responses are kept."""

    def __init__(self, fake: FakeServer, *, store: bool = True) -> None:
        self.fake = fake
        self.app = FastAPI()
        attach_responses(self.app)
        attach_messages(self.app)
        self.app.add_middleware(FieldGuard)
        self.app.include_router(fake.app.router)
        self.app.state.pilothouse = fake.app.state.pilothouse
        engine = self._engine()
        self.client = SteeringClient(engine, EngineLayout(), lambda: fake.extension.open_default("other", MODEL), 1)
        self.client.install()
        common = self._common(engine)
        self.responses = SteeringResponses.__new__(SteeringResponses)
        _set(self.responses, **common, use_harmony=False, tool_server=None, parser=None, enable_store=store)
        _set(self.responses, response_store={}, msg_store={}, event_store={}, background_tasks={})
        self.messages = SteeringMessages.__new__(SteeringMessages)
        _set(self.messages, **common, _merge_inline_system=False, parser_cls=None, response_role="assistant")
        self.app.state.openai_serving_responses = self.responses
        self.app.state.anthropic_serving_messages = self.messages

    def _engine(self) -> Any:
        model = SimpleNamespace(
            dtype=torch.float32,
            get_hidden_size=lambda: 8,
            is_encoder_decoder=False,
            max_model_len=10_000,
            generation_config="vllm",
        )
        return SimpleNamespace(
            model_config=model,
            errored=False,
            check_admission=lambda n: None,
            generate=self._generate,
            engine_core=SimpleNamespace(add_request_async=None),
            output_processor=SimpleNamespace(process_outputs=None),
        )

    def _common(self, engine: Any) -> dict[str, Any]:
        tokenizer = SimpleNamespace(decode=lambda ids: "".join(map(decode, ids)))
        path = SimpleNamespace(name=MODEL)

        async def render_responses(request: Any, **more: Any) -> Any:
            return SimpleNamespace(messages=[], engine_input=_prompt(request.input))

        async def render_chat(request: Any) -> Any:
            return [], [_prompt(request.messages[-1]["content"])]

        return {
            "pilothouse_extension": self.fake.extension,
            "pilothouse_client": self.client,
            "engine_client": engine,
            "model_config": engine.model_config,
            "models": SimpleNamespace(
                base_model_paths=[path],
                lora_requests={},
                is_base_model=lambda name: name == MODEL,
                model_name=lambda lora: MODEL,
            ),
            "renderer": SimpleNamespace(tokenizer=tokenizer, get_tokenizer=lambda: tokenizer),
            "online_renderer": SimpleNamespace(
                render_responses=render_responses,
                render_chat=render_chat,
                validate_chat_template=lambda **more: None,
                trust_request_chat_template=False,
            ),
            "default_chat_template_kwargs": {},
            "chat_template_kwargs": {},
            "default_sampling_params": {},
            "response_store_lock": asyncio.Lock(),
            **dict.fromkeys(("request_logger", "chat_template", "override_max_tokens", "system_fingerprint")),
            "chat_template_content_format": "auto",
            **dict.fromkeys(
                (
                    "has_kv_connector",
                    "return_tokens_as_token_ids",
                    "enable_auto_tools",
                    "enable_log_outputs",
                    "enable_per_request_metrics",
                    "enable_prompt_tokens_details",
                    "enable_force_include_usage",
                    "_include_reasoning_tokens_details",
                    "exclude_tools_when_tool_choice_none",
                ),
                False,
            ),
        }

    async def _generate(
        self, prompt: Any, params: Any, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """One sequence, step by step, as vLLM would put it out."""
        extra = params.extra_args or {}
        options: dict[str, Any] = json.loads(extra.get("fake", "{}"))
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        behaviour = Behaviour(**options)
        ids = prompt["prompt_token_ids"]
        asked: PromptTrack | None = self.client._prompts[extra[NONCE_KEY]] if NONCE_KEY in extra else None
        plan = asked.plan if asked else self.fake.extension.open({"probes": []}, "", MODEL).plan
        echo = Echo(len(ids), len(plan.readouts), asked=asked.choices[0] if asked else None)
        whole: list[int] = []
        for new in steps(plan, asked.spans if asked else [], echo, 0, params.max_tokens, behaviour):
            await asyncio.sleep(0)
            whole += new
            if params.output_kind == RequestOutputKind.DELTA:
                yield _output(request_id, ids, new, echo.finish_reason)
            if behaviour.fails:
                raise GenerationError("the engine died")
        if params.output_kind != RequestOutputKind.DELTA:
            yield _output(request_id, ids, whole, echo.finish_reason)


def _set(handler: Any, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(handler, name, value)


def _prompt(text: str) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": encode(text)}


def _output(request_id: str, prompt: list[int], ids: list[int], finish_reason: str | None) -> RequestOutput:
    choice = CompletionOutput(0, "".join(map(decode, ids)), ids, None, None, finish_reason=finish_reason)
    return RequestOutput(request_id, None, prompt, None, [choice], finish_reason is not None)
