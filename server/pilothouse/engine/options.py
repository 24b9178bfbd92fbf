"""How vLLM is told to use the seams: the same options for the server, the offline reader and the tests."""

import hashlib
from pathlib import Path
from typing import Any

from pilothouse.core.config import LAYOUT_KEY, EngineLayout

WORKER = "pilothouse.engine.worker.SteeringWorker"
CODE_KEY = "pilothouse_code"
SCHEDULER = "pilothouse.engine.scheduler.make_scheduler"


def engine_options(layout: EngineLayout, additional_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's engine; the layout joins `additional_config`, which is in the compile cache's key."""
    return {
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "additional_config": {**(additional_config or {}), **compile_key(layout)},
    }


def compile_key(layout: EngineLayout) -> dict[str, Any]:
    """What vLLM's compile cache must know: the layout, and the code that decides which blocks are hooked and how."""
    sha = hashlib.sha256()
    for name in ("chains.py", "placement.py", "runner.py", "sites.py"):
        sha.update((Path(__file__).parent / name).read_bytes())
    return {LAYOUT_KEY: layout.to_dict(), CODE_KEY: sha.hexdigest()}
