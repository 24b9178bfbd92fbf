"""What the engine's handlers are given: it makes a session of each request."""

from collections.abc import Mapping
from typing import Any

from pilothouse.api.plans import Planner
from pilothouse.api.presets import Presets
from pilothouse.api.session import Session, Surroundings
from pilothouse.core.messages import StepCost
from pilothouse.core.serving import RequestSession


class Extension:
    """A `RequestExtension`: one for each API process."""

    def __init__(self, planner: Planner, around: Surroundings, presets: Presets | None = None) -> None:
        self._planner = planner
        self._around = around
        self._presets = presets or Presets()

    def open(self, fields: Mapping[str, Any], route: str, model_name: str) -> RequestSession:
        """A session for a request with these extra top-level fields; BadRequest names what is wrong with them."""
        base, fields = self._presets.resolve(model_name, fields)
        return Session(self._planner.plan(fields), route, self._around.model_name or base, self._around)

    def model_names(self, model: str) -> list[str]:
        """What `model` is called with each preset."""
        return self._presets.model_names(model)

    def open_default(self, route: str, model_name: str) -> RequestSession:
        """A session that reads the server's default probes."""
        return Session(self._planner.defaults(), route, model_name, self._around)

    def spent(self, model_name: str, cost: StepCost) -> None:
        """Pass on what steps of the engine cost."""
        self._around.spent(model_name, cost)
