"""What the routes find under `app.state.pilothouse`."""

from dataclasses import dataclass

from fastapi import Request

from pilothouse.api.registry import Registry
from pilothouse.api.results import ResultsStore
from pilothouse.core.config import EngineLayout, Limits

ATTRIBUTE = "pilothouse"


@dataclass(frozen=True)
class ApiState:
    """The parts of a running server that its routes show or change. self_test: its findings, None if it was not run."""

    registry: Registry
    results: ResultsStore
    layout: EngineLayout
    limits: Limits
    admin_key: str | None
    self_test: str | None = None
    presets: tuple[str, ...] = ()


def state_of(request: Request) -> ApiState:
    """The state of the server that `request` came to."""
    state = getattr(request.app.state, ATTRIBUTE)
    assert isinstance(state, ApiState)
    return state
