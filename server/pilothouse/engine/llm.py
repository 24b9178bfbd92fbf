"""vLLM's in-process `LLM` with the seams in place. What a session is, and what may be asked for, is the caller's.

Seams: `LLM._run_engine`, which every call that waits for outputs ends in, and those of `llm_client`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm import LLM, RequestOutput
from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq

from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.sites import ModelShape
from pilothouse.engine.awaitable import AwaitableEngine, run
from pilothouse.engine.failure import startup_failures
from pilothouse.engine.llm_client import LLMClient
from pilothouse.engine.options import engine_options, prefer_runner, refuse_taken
from pilothouse.engine.selftest import SelfTestReport, self_test
from pilothouse.engine.support import model_shape, require_supported_config, require_supported_environment
from pilothouse.engine.versions import require_supported_vllm

logger = logging.getLogger(__name__)


class PlannedLLM(LLM):
    """vLLM's `LLM`, whose requests go with sessions.

    pilothouse_client: says which, and puts what they found on the outputs; pilothouse_shape: of the model that is
    loaded; pilothouse_self_test: what the self-test found, None where it was not run.
    """

    pilothouse_client: LLMClient
    pilothouse_shape: ModelShape
    pilothouse_self_test: SelfTestReport | None = None

    def __init__(self, model: str, layout: EngineLayout, *, test: bool, **options: Any) -> None:
        """options: of vLLM's `LLM`; test: whether steering and reading are held against a reference first.

        StartupError for what cannot work, and when the self-test fails.
        """
        require_supported_vllm()
        require_supported_environment()
        prefer_runner()
        refuse_taken(options)
        options |= engine_options(layout, options.get("additional_config"))
        with startup_failures():
            super().__init__(model, **options)
        try:
            self._prepare(layout, test)
        except BaseException:
            self.close()
            raise

    def _prepare(self, layout: EngineLayout, test: bool) -> None:
        config = self.llm_engine.vllm_config
        require_supported_config(config)
        shape = model_shape(config, layout.sites)
        name = config.model_config.served_model_name or shape.model
        self.pilothouse_shape = replace(shape, model=name)
        self.pilothouse_client = LLMClient(self.llm_engine, layout, Limits().adhoc_cache_bytes)
        self.pilothouse_client.install()
        if test:
            self.pilothouse_self_test = run(self_test(AwaitableEngine(self.llm_engine, self.pilothouse_client)))
            logger.info("Self-test: %s", self.pilothouse_self_test)

    def _run_engine(self, *args: Any, **kwargs: Any) -> list[Any]:
        outputs: list[Any] = super()._run_engine(*args, **kwargs)
        try:
            self.pilothouse_client.decorate([output for output in outputs if isinstance(output, RequestOutput)])
        finally:
            self.pilothouse_client.clear()
        return outputs

    def close(self) -> None:
        """Shut the engine down, and its processes with it."""
        self.llm_engine.engine_core.shutdown()


def count_prompts(prompts: Any) -> int:
    """How many prompts vLLM takes `prompts` for."""
    return len(prompt_to_seq(prompts))


def count_conversations(messages: Sequence[Any]) -> int:
    """How many conversations vLLM takes `messages` for."""
    return len(conversation_to_seq(messages))
