"""vLLM's synchronous engine for callers that await it: the start-up self-test is written for a server's engine."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vllm.sampling_params import RequestOutputKind

from pilothouse.core.serving import RequestSession
from pilothouse.engine.client import NullSession, current_session
from pilothouse.engine.llm_client import LLMClient

T = TypeVar("T")


class AwaitableEngine:
    """What the self-test asks of an engine client, by an `LLMEngine` with the seams of `client` in place."""

    def __init__(self, llm_engine: Any, client: LLMClient) -> None:
        self.model_config = llm_engine.model_config
        self.vllm_config = llm_engine.vllm_config
        self.engine_core = llm_engine.engine_core
        self._engine = llm_engine
        self._client = client
        self._finished: dict[str, Any] = {}

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[Any]:
        """The answers of all workers to a call of `method`."""
        return list(self._engine.collective_rpc(method, timeout, args))

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, data_parallel_rank: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """The one, finished output of a request, which goes with the session of the caller's context.

        data_parallel_rank: there is one engine, so it goes there.
        """
        session = current_session.get()
        if session is None or isinstance(session, NullSession):
            raise ValueError("a request of the engine's own came without its session")
        return self._answer(session, prompt, sampling_params, request_id)

    async def _answer(
        self, session: RequestSession, prompt: Any, sampling_params: Any, request_id: str
    ) -> AsyncGenerator[Any, None]:
        sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
        with self._client.carrying([session]):
            self._engine.add_request(request_id, prompt, sampling_params)
        while request_id not in self._finished:
            # Whoever else is about to add a request does so first, so that they share their steps.
            await asyncio.sleep(0)
            if request_id not in self._finished:
                for output in self._engine.step():
                    self._client.finish(output)
                    self._finished[output.request_id] = output
        yield self._finished.pop(request_id)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_run, work).result()


def _run(work: Coroutine[Any, Any, T]) -> T:
    # Not asyncio.run, which leaves the thread without the event loop that the caller may have set.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
