"""Requests that the server makes of its own engine, the whole way that a client's go."""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any, cast

from pilothouse.core.directions import Direction
from pilothouse.core.errors import EngineGap
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.serving import RequestSession
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.client import PlanSession, current_session

N_PROMPT = 2

_numbers = count()


def engines(engine_client: Any) -> range:
    """Numbers of the engines that this client sends requests to: several with data parallelism, else one."""
    # One that runs in this process has no list of them.
    return range(len(getattr(engine_client.engine_core, "core_engines", (0,))))


async def serve_own(
    engine_client: Any, prompt: Sequence[int], plan: Plan, params: Any, name: str, engine: int = 0
) -> tuple[Any, ChoiceTrack]:
    """vLLM's last output for `prompt` under `plan` with these SamplingParams, and what was read on the way.

    engine_client: with the seams of `SteeringClient` in place; name: what the request's id begins with; engine: one of
    `engines`. EngineGap when it answers nothing.
    """
    session = PlanSession(plan)
    token = current_session.set(cast(RequestSession, session))
    try:
        outputs = engine_client.generate(
            {"prompt_token_ids": list(prompt), "type": "token"},
            params,
            f"pilothouse-{name}-{next(_numbers)}",
            data_parallel_rank=engine,
        )
    finally:
        current_session.reset(token)
    last = None
    async for output in outputs:
        last = output
    if last is None or session.track is None:
        raise EngineGap(f"the engine gave no output to its own request ({name})")
    return last, session.track.choices[0]


async def deliver(engine_client: Any, direction: Direction) -> None:
    """Take a direction to every worker of every engine, and return once all of them have read with it.

    It goes as the content of any request's directions goes, with a request of two tokens that reads by it, so it is in
    order with the requests that will name it. EngineGap when the readings do not come back.
    """
    from vllm import SamplingParams

    vocabulary = engine_client.model_config.get_vocab_size()
    prompt = [min(token, vocabulary - 1) for token in range(N_PROMPT)]
    plan = Plan((), (Readout("upload", direction),), prompt_scores=True)
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)

    async def deliver_to(engine: int) -> None:
        _, track = await serve_own(engine_client, prompt, plan, params, "upload", engine)
        if track.scored.count(0, N_PROMPT) != N_PROMPT:
            raise EngineGap("the workers did not read by what was uploaded")

    await asyncio.gather(*map(deliver_to, engines(engine_client)))
