"""How vLLM is told to use the seams: the same options for the server, the offline reader and the tests."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pilothouse.core.config import LAYOUT_KEY, EngineLayout
from pilothouse.core.errors import StartupError

WORKER = "pilothouse.engine.worker.SteeringWorker"
CODE_KEY = "pilothouse_code"
SCHEDULER = "pilothouse.engine.scheduler.make_scheduler"
SEAMS = {"worker_cls": WORKER, "scheduler_cls": SCHEDULER}
SHARED_BALANCING = (
    "data_parallel_rank",
    "data_parallel_start_rank",
    "data_parallel_external_lb",
    "data_parallel_hybrid_lb",
    "data_parallel_multi_port_external_lb",
)
"""Options by which several servers share data parallel engines; none of these ways has been run."""


def refuse_taken(options: Mapping[str, Any], spell: Callable[[str], str] = str) -> None:
    """StartupError for options of vLLM's that Pilothouse sets itself, or that it has not been run with.

    options: by vLLM's own names; spell: what whoever gave them calls them.
    """
    for name, ours in SEAMS.items():
        if options.get(name) not in (None, "auto", ours):
            raise StartupError(f"{spell(name)} is taken by Pilothouse")
    for name in SHARED_BALANCING:
        # Rank 0 is one, too.
        if options.get(name) is not None and options[name] is not False:
            raise StartupError(
                f"this release of Pilothouse does not serve with {spell(name)}: its data parallel engines belong to "
                "one server, which balances their load"
            )


def prefer_runner() -> None:
    """The V1 runner is the one that has been run with sites. Whoever asks for V2 gets it, behind the start-up
    self-test."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


def engine_options(layout: EngineLayout, additional_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's engine; the layout joins `additional_config`, which is in the compile cache's key."""
    return {**SEAMS, "additional_config": {**(additional_config or {}), **compile_key(layout)}}


def compile_key(layout: EngineLayout) -> dict[str, Any]:
    """What vLLM's compile cache must know: the layout, and the code that decides which blocks are hooked and how."""
    sha = hashlib.sha256()
    for name in ("chains.py", "placement.py", "runner.py", "sites.py"):
        sha.update((Path(__file__).parent / name).read_bytes())
    return {LAYOUT_KEY: layout.to_dict(), CODE_KEY: sha.hexdigest()}
