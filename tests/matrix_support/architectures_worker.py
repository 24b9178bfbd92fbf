"""Rows of the table of architectures, tried out in processes of their own.

Engines that share a process share vLLM's process groups, which are made for the first one's kind of model, and those
that fail to start leave theirs behind. So the rows keep away from the engines of other tests, and run several at a time
where the machine has the cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matrix_support.architectures import ROWS, Architecture
from matrix_support.architectures_battery import Gathered, gather

CORES_PER_ROW = 2

BY_NAME = {row.name: row for row in ROWS}
Answer = Gathered | str


class Workers:
    """Processes to which the rows of a run are given all at once, and asked for one after the other."""

    def __init__(self, names: list[str]) -> None:
        count = max((os.cpu_count() or 1) // CORES_PER_ROW, 1)
        self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_prepare)
        self._answers: dict[str, Future[Answer]] = {name: self._pool.submit(try_out, name) for name in names}

    def answer(self, name: str) -> Answer:
        """What the engine answered, or why vLLM did not run the model, or why no site could be placed in it."""
        return self._answers[name].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    os.environ.update(VLLM_USE_V2_MODEL_RUNNER="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
    from vllm.model_executor.models import registry

    # vLLM asks another process about every architecture that it has not met yet, lest it touch a GPU in this one.
    registry._run_in_subprocess = lambda inspect: inspect()


def try_out(name: str) -> Answer:
    """Make the model of a row, start an engine of it, and put that through everything."""
    architecture = BY_NAME[name]
    with tempfile.TemporaryDirectory() as folder:
        architecture.save(Path(folder))
        if architecture.not_run is not None:
            return _failure(architecture.not_run, lambda: _run_stock(architecture, Path(folder)))
        if architecture.refusal is not None:
            return _failure(architecture.refusal, lambda: _start_server(architecture, Path(folder)))
        # Before the engine: vLLM's backend for Hugging Face's models decorates their classes.
        reference = architecture.reference(Path(folder))
        engine = _start(architecture, Path(folder))
        try:
            return gather(engine, reference, architecture.tolerance, architecture.not_spelled_out)
        finally:
            engine.abandon()
            engine.close()


def _start(architecture: Architecture, folder: Path) -> Any:
    from engine_support.harness import Engine

    from pilothouse.core.config import EngineLayout

    layout = EngineLayout(rows=16, chains=8, readouts=8)
    options = {"enforce_eager": True, **architecture.options}
    return Engine(folder, layout, in_process=True, **options)


def _start_server(architecture: Architecture, folder: Path) -> None:
    """As a server starts: its configuration is looked at before any weights are loaded."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from pilothouse.engine.support import require_supported_config

    arguments = AsyncEngineArgs(model=str(folder), dtype="float32", skip_tokenizer_init=True, max_model_len=256)
    require_supported_config(arguments.create_engine_config())
    _start(architecture, folder)


def _run_stock(architecture: Architecture, folder: Path) -> None:
    """A plain request to vLLM as it comes."""
    from engine_support.harness import Engine

    engine = Engine(folder, None, in_process=True, enforce_eager=True, **architecture.options)
    try:
        engine.run([[1, 2, 3, 4]], [None], 2)
    finally:
        engine.abandon()
        engine.close()


def _failure(expected: str, run: Callable[[], Any]) -> str:
    """In one line, how `run` failed; AssertionError when it did not, or not in these words."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    said = ""
    try:
        run()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    # An engine that did not start leaves its process group to the next one.
    cleanup_dist_env_and_memory()
    assert expected in said, said or f"it runs now, so {expected!r} is no longer so"
    return next(line for line in said.splitlines() if expected in line).strip()
