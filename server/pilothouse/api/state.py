"""What the routes find under `app.state.pilothouse`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request

from pilothouse.api.peers import Peers
from pilothouse.api.registry import Registry
from pilothouse.api.results import ResultsStore
from pilothouse.api.strength import StrengthLimit
from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.directions import Direction
from pilothouse.core.errors import EngineGap
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

    self_test: its findings, None if it was not run; watching: looks for changed artefacts, held here because the event
    loop keeps no hold of its tasks; peers: further API servers of this server; engine_traces: whether vLLM makes spans
    of its own; closing: to be called, in any order and at once, when the server ends.
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
    watching: asyncio.Task[None] | None = None
    peers: Peers | None = None
    engine_traces: bool = False
    closing: tuple[Callable[[], None], ...] = ()


@asynccontextmanager
async def closing_at_the_end(app: FastAPI) -> AsyncIterator[None]:
    """The life of a server: uvicorn ends it, in every API server, once the last request has ended."""
    yield
    state = getattr(app.state, ATTRIBUTE, None)
    if state is None:
        return
    ends = (asyncio.to_thread(close) for close in state.closing)
    for result in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(result, BaseException):
            logger.error("Not closed as it should be", exc_info=result)


def state_of(request: Request) -> ApiState:
    """The state of the server that `request` came to."""
    state = getattr(request.app.state, ATTRIBUTE)
    assert isinstance(state, ApiState)
    return state
