"""The start-up self-test passes on an engine that works and fails on every way of not working that we can think of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support.faulty import FAULTS

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError
from pilothouse.engine import selftest
from pilothouse.engine.inprocess import start_engine
from pilothouse.engine.options import engine_options
from pilothouse.engine.selftest import SelfTestReport, self_test

pytestmark = pytest.mark.engine


class Running:
    """An asynchronous engine as a server has it, on an event loop of its own."""

    def __init__(self, model: Path, **options: Any) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs

        seams = engine_options(EngineLayout()) | {"worker_cls": "engine_support.faulty.FaultyWorker"}
        arguments = {"max_model_len": 64, "kv_cache_memory_bytes": 64 << 20, "skip_tokenizer_init": True}
        config = AsyncEngineArgs(model=str(model), **(arguments | options | seams)).create_engine_config()
        self.loop = asyncio.new_event_loop()
        self.engine = self.loop.run_until_complete(start_engine(config, EngineLayout()))

    def self_test(self) -> SelfTestReport:
        return self.loop.run_until_complete(self_test(self.engine))

    def call(self, method: str, *args: Any) -> None:
        self.loop.run_until_complete(self.engine.collective_rpc(method, args=args))

    def close(self) -> None:
        self.engine.shutdown()
        waiting = asyncio.all_tasks(self.loop)
        for task in waiting:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        self.loop.close()


@pytest.fixture(scope="module")
def running(llama: Path) -> Iterator[Running]:
    running = Running(llama, dtype="float32", enforce_eager=True)
    yield running
    running.close()


def test_an_engine_that_works_passes_by_far(running: Running) -> None:
    report = running.self_test()
    assert report.skipped is None
    assert report.movement > 0.1
    worst = max(report.steering_error, report.identity_error, report.readout_error)
    assert worst < 0.02 * selftest.TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_an_engine_that_does_not_work_is_refused(running: Running, name: str) -> None:
    running.call("break_it", name)
    try:
        with pytest.raises(StartupError, match="self-test failed"):
            running.self_test()
    finally:
        running.call("mend_it")
    running.self_test()


def test_a_client_that_may_not_ask_for_logprobs_learns_that_nothing_was_compared(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.engine.model_config, "max_logprobs", 0)
    assert "max-logprobs" in str(running.self_test())


def test_half_precision_passes_and_still_sees_a_missing_edit(llama: Path) -> None:
    running = Running(llama, dtype="bfloat16", enforce_eager=True)
    try:
        report = running.self_test()
        assert report.skipped is None
        worst = max(report.steering_error, report.identity_error, report.readout_error)
        assert worst < selftest.TOLERANCE[torch.bfloat16]
        running.call("break_it", "nothing_is_edited")
        with pytest.raises(StartupError, match="a steered request differs"):
            running.self_test()
    finally:
        running.close()
