"""The engine against Hugging Face in float32: every score and every log-probability, in mixed batches."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import plans as make
from engine_support.harness import Engine, Reference
from engine_support.parity import LOGPROB_TOLERANCE, check
from engine_support.situations import run_sampled, run_with_aborts, take_every_place

from pilothouse.core.plans import Plan

pytestmark = pytest.mark.engine

MAX_TOKENS = 10


@pytest.mark.parametrize("which", ["compiled_llama", "eager_qwen3"])
def test_mixed_batches_equal_hugging_face(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(1)
    prompts, plans = make.prompts(rng, 32), make.mixed_plans(rng, 32)
    assert {change.positions for plan in plans for change in plan.edits} == set(make.POSITIONS)
    results = engine.run(prompts, plans, MAX_TOKENS)
    compared = sum(check(reference, *case) for case in zip(prompts, plans, results, strict=True))
    assert compared > 600


def test_a_plain_request_in_a_steered_batch_is_plain(compiled_llama: tuple[Engine, Reference]) -> None:
    engine, reference = compiled_llama
    rng = np.random.default_rng(2)
    prompts = make.prompts(rng, 8)
    steered = [Plan((make.edit(rng, [0, 1], "all", 3.0),)) for _ in prompts]
    mixed = [plan if i % 2 else None for i, plan in enumerate(steered)]
    for prompt, plan, result in zip(prompts, mixed, engine.run(prompts, mixed, MAX_TOKENS), strict=True):
        check(reference, prompt, plan or Plan(), result)


def test_zero_strength_is_the_identity_and_a_strong_vector_is_not(compiled_llama: tuple[Engine, Reference]) -> None:
    engine, _ = compiled_llama
    rng = np.random.default_rng(3)
    prompts = make.prompts(rng, 4)
    plain = engine.run(prompts, [None] * 4, MAX_TOKENS)
    zero = engine.run(prompts, [Plan((make.edit(rng, [1], "all", 0.0),))] * 4, MAX_TOKENS)
    strong = engine.run(prompts, [Plan((make.edit(rng, [1], "all", 50.0),))] * 4, MAX_TOKENS)
    assert [r.token_ids for r in zero] == [r.token_ids for r in plain]
    np.testing.assert_allclose([r.logprobs for r in zero], [r.logprobs for r in plain], atol=1e-6)
    assert all(a.token_ids != b.token_ids for a, b in zip(strong, plain, strict=True))


def test_more_plans_than_rows_wait_and_all_are_steered(eager_qwen3: tuple[Engine, Reference]) -> None:
    engine, reference = eager_qwen3
    assert engine.layout.rows < 8
    rng = np.random.default_rng(4)
    prompts = make.prompts(rng, 9)
    plans: list[Plan | None] = [Plan((make.edit(rng, [2], "generation", 5.0),)) for _ in range(8)]
    plans.append(None)
    results = engine.run(prompts, plans, 5)
    for prompt, plan, result in zip(prompts, plans, results, strict=True):
        check(reference, prompt, plan or Plan(), result)


def test_more_probes_than_columns_wait_and_all_are_read(eager_qwen3: tuple[Engine, Reference]) -> None:
    engine, reference = eager_qwen3
    rng = np.random.default_rng(5)
    prompts = make.prompts(rng, 6)
    plans = [Plan((), tuple(make.readout(rng, [layer]) for layer in (0, 1, 3))) for _ in prompts]
    for case in zip(prompts, plans, engine.run(prompts, plans, 5), strict=True):
        assert check(reference, *case) > 0


def test_preempted_requests_keep_their_plans_and_repeat_no_score(eager_qwen3: tuple[Engine, Reference]) -> None:
    engine, reference = eager_qwen3
    rng = np.random.default_rng(6)
    prompts = [[int(t) for t in rng.integers(1, 500, size=30)] for _ in range(12)]
    shared = [make.edit(rng, [1], "generation", 3.0), make.edit(rng, [2], "prompt", 3.0)]
    probe = make.readout(rng, [0, 2])
    plans = [Plan((shared[i % 2],) if i % 3 else (), (probe,)) for i in range(12)]
    before = engine.preemptions()
    results = engine.run(prompts, plans, 60)
    assert engine.preemptions() > before
    for prompt, plan, result in zip(prompts, plans, results, strict=True):
        assert check(reference, prompt, plan, result) == 60
        assert result.track.count_forwarded(0, 1000) == 30 + 59


def test_each_of_four_sampled_sequences_has_its_own_scores(compiled_llama: tuple[Engine, Reference]) -> None:
    engine, reference = compiled_llama
    rng = np.random.default_rng(7)
    for number, (prompt, plan) in enumerate(zip(make.prompts(rng, 8), make.mixed_plans(rng, 8), strict=True)):
        results = run_sampled(engine, prompt, plan, 4, seed=number)
        assert len({tuple(result.token_ids) for result in results}) == 4
        for result in results:
            compared = check(reference, prompt, plan, result)
            assert compared or not plan.readouts


@pytest.mark.parametrize("which", ["compiled_llama", "eager_qwen3"])
def test_an_abort_mid_way_changes_nothing_for_the_others(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(8)
    prompts, plans = make.prompts(rng, 24), make.mixed_plans(rng, 24)
    jobs = run_with_aborts(engine, prompts, plans, after=6)
    given_up = [job for job in jobs if job.aborted]
    assert len(given_up) == 8
    assert not any(job.results for job in given_up)
    for job in jobs:
        for result in job.results:
            check(reference, job.prompt, job.plan, result)
    assert sum(bool(job.results) for job in jobs) == 16


def test_an_aborted_request_gives_its_row_and_columns_back(eager_qwen3: tuple[Engine, Reference]) -> None:
    engine, reference = eager_qwen3
    rng = np.random.default_rng(9)
    plans = [Plan((make.edit(rng, [1], "all"),), (make.readout(rng, [2]),)) for _ in range(engine.layout.rows)]
    jobs = [engine.submit(prompt, plan, 50) for prompt, plan in zip(make.prompts(rng, len(plans)), plans, strict=True)]
    for _ in range(8):
        engine.step()
    scheduler, board = engine.scheduler, engine.board
    assert scheduler.pilothouse_rows.held == engine.layout.rows
    assert len(board.spans) == len(jobs)
    for job in jobs:
        engine.abort(job)
    assert scheduler.pilothouse_rows.held == scheduler.pilothouse_columns.held == 0
    for case in zip(*take_every_place(engine, 10), strict=True):
        check(reference, *case)
    assert len(board.spans) <= engine.layout.rows + 1, "the worker still knows who was aborted"
    assert not {name for job in jobs for name in job.tracks} & set(board.spans._line)


@pytest.mark.parametrize("which", ["compiled_llama", "eager_qwen3"])
def test_a_warm_cache_gives_what_a_cold_one_gives(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(10)
    prompts = [[int(t) for t in rng.integers(1, 500, size=n)] for n in (70, 90, 100)]
    plans = make.mixed_plans(rng, 12)[1:]
    warm_hits = 0
    for i, plan in enumerate(plans):
        prompt = prompts[i % 3]
        engine.reset_cache()
        cold = engine.run([prompt], [plan], MAX_TOKENS)[0]
        warm = engine.run([prompt], [plan], MAX_TOKENS)[0]
        assert cold.cached_tokens == 0
        assert warm.cached_tokens == 32 * ((len(prompt) - 1) // 32)
        warm_hits += warm.cached_tokens
        for result in (cold, warm):
            check(reference, prompt, plan, result)
        assert warm.token_ids == cold.token_ids
        np.testing.assert_allclose(warm.logprobs, cold.logprobs, atol=LOGPROB_TOLERANCE)
    assert warm_hits
