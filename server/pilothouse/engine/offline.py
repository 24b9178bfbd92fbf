"""A steered model without a server: the whole way that served requests go, from a plain function call."""

import asyncio
import dataclasses
from collections.abc import Coroutine, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar, cast

import numpy as np

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import ArtefactError, EngineGap
from pilothouse.core.gaps import describe_gaps, find_gaps
from pilothouse.core.plans import Plan
from pilothouse.core.serving import Generated, RequestSession
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.client import PlanSession, current_session
from pilothouse.engine.failure import startup_failures
from pilothouse.engine.inprocess import encode_item, start_engine
from pilothouse.engine.launch import prepare_environment
from pilothouse.engine.options import engine_options
from pilothouse.engine.support import model_shape, require_supported_config
from pilothouse.engine.versions import require_supported_vllm

T = TypeVar("T")


class OfflineEngine:
    """A vLLM with the seams in place, on an event loop of its own. Implements `SteeredModel`.

    Not to be called from within a running event loop. Interrupted by Ctrl-C, a call gives its requests up.
    """

    def __init__(self, model: str, served_name: str | None = None, **engine_arguments: Any) -> None:
        require_supported_vllm()
        prepare_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs

        layout = EngineLayout()
        options = {"disable_log_stats": True, **engine_arguments, **engine_options(layout)}
        self._numbers = count()
        with startup_failures():
            config = AsyncEngineArgs(model=model, **options).create_engine_config()
            require_supported_config(config)
            self._runner = asyncio.Runner()
            try:
                self._engine = self._runner.run(start_engine(config, layout))
            except BaseException:
                self._runner.close()
                raise
        self._max_model_len = config.model_config.max_model_len
        shape = model_shape(config, layout.sites)
        self._shape = dataclasses.replace(shape, model=served_name or model)

    @property
    def shape(self) -> ModelShape:
        return self._shape

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        return encode_item(self._engine.get_tokenizer(), item, add_generation_prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._engine.get_tokenizer().decode(list(token_ids), skip_special_tokens=True))

    def generate(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], max_tokens: int) -> list[Generated]:
        # Readouts of the whole prompt: a probe's `prompt_end` is one of them.
        plans = [dataclasses.replace(plan, prompt_scores=bool(plan.readouts)) for plan in plans]
        found = self._run(self._all(prompts, plans, max_tokens=max_tokens))
        return [self._generated(output.outputs[0], track) for output, track in found]

    def logprobs(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan]) -> list[Float32]:
        found = self._run(self._all(prompts, plans, max_tokens=1, prompt_logprobs=0))
        return [_prompt_logprobs(prompt, output) for prompt, (output, _) in zip(prompts, found, strict=True)]

    def close(self) -> None:
        self._engine.shutdown()
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _all(
        self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], **sampling: Any
    ) -> list[tuple[Any, ChoiceTrack]]:
        """Every prompt at once: vLLM queues what does not fit into its batch."""
        for prompt in prompts:
            if not 0 < len(prompt) < self._max_model_len:
                raise ArtefactError(f"a prompt of {len(prompt)} tokens: the model takes 1 to {self._max_model_len - 1}")
        tasks = [
            asyncio.create_task(self._one(list(prompt), plan, sampling))
            for prompt, plan in zip(prompts, plans, strict=True)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            # One that failed must not leave the others to run into the next call.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, prompt: list[int], plan: Plan, sampling: Mapping[str, Any]) -> tuple[Any, ChoiceTrack]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **dict(sampling)
        )
        session = PlanSession(plan)
        # Each task has a context of its own, so no other request sees this session.
        current_session.set(cast(RequestSession, session))
        name = f"pilothouse-offline-{next(self._numbers)}"
        last = None
        async for output in self._engine.generate({"prompt_token_ids": prompt, "type": "token"}, params, name):
            last = output
        if last is None or session.track is None:
            raise EngineGap("the engine gave no output")
        track = session.track.choices[0]
        if gaps := find_gaps(plan, session.track.spans, track):
            raise EngineGap(describe_gaps(gaps))
        return last, track

    def _generated(self, choice: Any, track: ChoiceTrack) -> Generated:
        ids = list(choice.token_ids)
        n_tokens = track.n_prompt + len(ids)
        readouts = track.scores(0, n_tokens)
        # Whether the last token was run depends on how the engine schedules: not something to build on.
        readouts[n_tokens - 1 :] = np.nan
        if np.isnan(readouts[: n_tokens - 1]).any():
            raise EngineGap("the engine did not read every token that it ran")
        return Generated(ids, self.decode(ids), str(choice.finish_reason), readouts)


def _prompt_logprobs(prompt: Sequence[int], output: Any) -> Float32:
    found = np.full(len(prompt), np.nan, dtype=np.float32)
    for position, entry in enumerate(output.prompt_logprobs):
        if entry is not None:
            found[position] = entry[prompt[position]].logprob
    if np.isnan(found[1:]).any():
        raise EngineGap("the engine did not give every prompt token's log-probability")
    return found
