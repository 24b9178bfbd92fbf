"""The LLM with its engine in this process, compiled: every way to call it, and what may go wrong on the way."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_support.harness import Reference
from offline_support.calls import (
    LONG,
    READS,
    Call,
    answered,
    calls,
    check_logprobs,
    check_scores,
    environment_as_it_was,
    fine_tuned,
    steered_and_read,
)
from vllm import SamplingParams, envs

from pilothouse.core.errors import EngineGap, StartupError
from pilothouse.core.messages import Reading
from pilothouse.core.plans import Plan
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.awaitable import AwaitableEngine, run
from pilothouse.engine.board import Board
from pilothouse.engine.selftest import SelfTestReport, self_test
from pilothouse.engine.token_buffer import TokenBuffer
from pilothouse.harbor.paths import model_dir
from pilothouse.offline import LLM

pytestmark = [pytest.mark.engine, pytest.mark.slow]

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with environment_as_it_was(), warnings.catch_warnings():
        # vLLM's engine warns of matters of its own where it runs.
        warnings.simplefilter("ignore")
        os.environ.update(IN_PROCESS)
        made = LLM(distributed_executor_backend="uni")
        logging.getLogger("vllm").handlers.clear()
        yield made
        made.close()
        envs.disable_envs_cache()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(model_dir())


def test_the_engine_is_here_and_was_tested(llm: LLM) -> None:
    assert isinstance(llm.llm_engine.model_executor.driver_worker.worker.model_runner.pilothouse_board, Board)
    assert llm.pilothouse_self_test is not None
    assert llm.pilothouse_self_test.steering_error < 0.01 < llm.pilothouse_self_test.movement
    assert set(llm.pilothouse_self_test.lengths) == set(range(6))


def test_a_mixed_batch_of_several_sequences_each(llm: LLM, reference: Reference) -> None:
    asked = calls()
    for output, call in zip(answered(llm, asked, n=3, temperature=1.0, seed=5), asked, strict=True):
        assert len(output.outputs) == 3
        check_logprobs(output, call.plan, reference)
        if call.probes is not None:
            check_scores(output, call.plan, reference)


def test_chats(llm: LLM, reference: Reference) -> None:
    asked = calls()[1:4]
    chats = [[{"role": "user", "content": f"What is the capital of {place}?"}] for place in ("France", "Spain", "Peru")]
    outputs = llm.chat(
        chats,
        SamplingParams(**GREEDY),
        False,
        steering=[call.steering for call in asked],
        probes=[call.probes for call in asked],
    )
    template = llm.get_tokenizer().apply_chat_template
    for output, chat, call in zip(outputs, chats, asked, strict=True):
        assert output.prompt_token_ids == template(chat, add_generation_prompt=True)["input_ids"]
        check_logprobs(output, call.plan, reference)
        check_scores(output, call.plan, reference)
    one = llm.chat(chats[0], SamplingParams(**GREEDY), use_tqdm=False, probes=READS)
    check_scores(one[0], calls()[1].plan, reference)


def test_requests_that_wait_in_a_paused_engine_keep_their_plans(llm: LLM, reference: Reference) -> None:
    asked = calls()
    llm.sleep(level=0)
    for call in asked:
        llm.enqueue(call.prompt, SamplingParams(**GREEDY), steering=call.steering, probes=call.probes, use_tqdm=False)
    llm.enqueue_chat([{"role": "user", "content": "Hello"}], SamplingParams(**GREEDY), probes=READS, use_tqdm=False)
    llm.wake_up(tags=["scheduling"])
    *outputs, chat = llm.wait_for_completion(use_tqdm=False)
    for output, call in zip(outputs, asked, strict=True):
        check_logprobs(output, call.plan, reference)
        assert (output.outputs[0].steering is None) == (call.steering is None)
    check_scores(chat, asked[1].plan, reference)


def test_beam_search_is_vllms(llm: LLM) -> None:
    from vllm.sampling_params import BeamSearchParams

    found = llm.beam_search([{"prompt": "The capital of France is"}], BeamSearchParams(beam_width=2, max_tokens=3))
    assert len(found[0].sequences) == 2


def test_an_edit_that_was_left_out_is_an_error(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    take_in = ChoiceTrack.add

    def unedited(track: ChoiceTrack, reading: Reading) -> None:
        runs = tuple((start, count, 0) for start, count, _ in reading.runs)
        take_in(track, msgspec.structs.replace(reading, runs=runs))

    monkeypatch.setattr(ChoiceTrack, "add", unedited)
    assert answered(llm, [calls()[1]])
    with pytest.raises(EngineGap, match=r"prompt 1: .* not steered as asked"):
        answered(llm, calls()[1:3])


def test_the_self_test_sees_rows_that_are_not_written(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenBuffer, "write", lambda buffer, numbers: None)
    with pytest.raises(StartupError, match="self-test failed: a steered request differs"):
        report_of(llm)


async def test_the_self_test_runs_where_an_event_loop_does(llm: LLM) -> None:
    assert report_of(llm).steering_error < 0.01


def report_of(llm: LLM) -> SelfTestReport:
    return run(self_test(AwaitableEngine(llm.llm_engine, llm.pilothouse_client)))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal sends it: programs that were started in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_call_that_is_interrupted_gives_its_requests_up(llm: LLM, reference: Reference) -> None:
    many = [steered_and_read()] * 64

    def work() -> None:
        for _ in range(200):
            answered(llm, many, max_tokens=200)

    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        work()
    outputs = answered(llm, [Call(LONG, None, None, Plan()), steered_and_read()])
    assert len(outputs) == 2
    check_logprobs(outputs[0], Plan(), reference)
    check_scores(outputs[1], many[0].plan, reference)


def test_a_compiled_model_is_steered_behind_new_weights(llm: LLM, reference: Reference, tmp_path: Path) -> None:
    call, other = steered_and_read(), fine_tuned(tmp_path / "harbor")
    check_logprobs(answered(llm, [call])[0], call.plan, reference)
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
    assert llm.reset_prefix_cache()
    try:
        output = answered(llm, [call])[0]
        check_logprobs(output, call.plan, Reference(other))
        check_scores(output, call.plan, Reference(other))
        with pytest.raises(AssertionError):
            check_logprobs(output, call.plan, reference)
    finally:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model_dir())})
        assert llm.reset_prefix_cache()
