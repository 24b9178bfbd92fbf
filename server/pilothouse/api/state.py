"""What the routes find under `app.state.pilothouse`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request

from pilothouse.api.peers import Peers
from pilothouse.api.registry import Registry
from pilothouse.api.results import ResultsStore
from pilothouse.api.strength import StrengthLimit
from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.directions import Direction
from pilothouse.core.errors import EngineGap
from pilothouse.records.service import Records
from pilothouse.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

ATTRIBUTE = "pilothouse"


Deliver = Callable[[Direction], Awaitable[None]]
"""Takes a direction to every worker; returns when all of them have it, and have read with it. EngineGap or BusyError
when they have not."""


async def nowhere(direction: Direction) -> None:
    """A `Deliver` for a server whose engine is not there yet: EngineGap."""
    raise EngineGap("the engine is not ready to take uploads")


@dataclass(frozen=True)
class ApiState:
    """The parts of a running server that its routes show or change.

    self_test: its findings, None if it was not run; peers: further API servers of this server; reader_key: reads
    records, as the admin key does; records: the database of them, None where there is none; engine_traces: whether vLLM
    makes spans of its own; closing: to be called, in any order and at once, when the server ends; tasks: held here
    because the event loop keeps no hold of them.
    """

    registry: Registry
    results: ResultsStore
    layout: EngineLayout
    limits: Limits
    admin_key: str | None
    strength_limit: StrengthLimit
    metrics: Metrics
    self_test: str | None = None
    presets: tuple[str, ...] = ()
    deliver: Deliver = nowhere
    peers: Peers | None = None
    reader_key: str | None = None
    records: Records | None = None
    engine_traces: bool = False
    closing: tuple[Callable[[], None], ...] = ()
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Have this done beside the requests, for as long as the server lives."""
        self.tasks.append(asyncio.create_task(work))


@asynccontextmanager
async def closing_at_the_end(app: FastAPI) -> AsyncIterator[None]:
    """The life of a server: uvicorn ends it, in every API server, once the last request has ended."""
    yield
    state = getattr(app.state, ATTRIBUTE, None)
    if state is None:
        return
    for task in state.tasks:
        task.cancel()
    ends = (asyncio.to_thread(close) for close in state.closing)
    for result in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(result, BaseException):
            logger.error("Not closed as it should be", exc_info=result)
    # Last, for it tells what the others have counted up to their ends.
    await asyncio.to_thread(state.metrics.close)


def state_of(request: Request) -> ApiState:
    """The state of the server that `request` came to."""
    state = getattr(request.app.state, ATTRIBUTE)
    assert isinstance(state, ApiState)
    return state
