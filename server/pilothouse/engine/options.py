"""How vLLM is told to use the seams: the same options for the server, the offline reader and the tests."""

from typing import Any

from pilothouse.core.config import LAYOUT_KEY, EngineLayout

WORKER = "pilothouse.engine.worker.SteeringWorker"
SCHEDULER = "pilothouse.engine.scheduler.make_scheduler"


def engine_options(layout: EngineLayout, additional_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's engine; the layout joins `additional_config`, which is in the compile cache's key."""
    return {
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "additional_config": {**(additional_config or {}), LAYOUT_KEY: layout.to_dict()},
    }
