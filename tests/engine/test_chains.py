"""Every operation, one after another and behind gates, against Hugging Face with the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_support import plans as make
from engine_support.changes import first_met, met
from engine_support.harness import Engine, Reference
from engine_support.parity import LOGPROB_TOLERANCE, check

from pilothouse.core.edits import OPERATIONS
from pilothouse.core.plans import END, Plan

pytestmark = pytest.mark.engine

MAX_TOKENS = 8
ENGINES = pytest.mark.parametrize("which", ["compiled_llama", "eager_qwen3"])


@ENGINES
def test_chains_in_mixed_batches_equal_hugging_face(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(31)
    prompts, plans = make.prompts(rng, 48), make.chained_plans(rng, 36) + make.mixed_plans(rng, 12)
    assert {edit.op for plan in plans for edit in plan.edits} == set(OPERATIONS)
    order = [int(i) for i in rng.permutation(48)]
    prompts, plans = [prompts[i] for i in order], [plans[i] for i in order]
    results = engine.run(prompts, plans, MAX_TOKENS)
    compared = sum(check(reference, *case) for case in zip(prompts, plans, results, strict=True))
    assert compared > 600


@ENGINES
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("preserve_norm", [False, True])
def test_every_operation_by_itself(which: str, op: str, preserve_norm: bool, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(32)
    prompt = make.prompts(rng, 1, longest=30)[0]
    change = make.chained_edit(rng, op, [1, 2], "all", preserve_norm=preserve_norm)  # type: ignore[arg-type]
    plan = Plan((change,), (make.readout(rng, [3]),), prompt_scores=True)
    result = engine.run([prompt], [plan], MAX_TOKENS)[0]
    check(reference, prompt, plan, result)
    _, without = reference.run(prompt, result.token_ids, replace(plan, edits=()))
    moved = np.abs(result.track.scores(0, len(without) - 1) - without[:-1]).max()
    assert moved > 0.05 * without.std(), "the edit moves nothing, so the comparison shows nothing"


@ENGINES
def test_gates_open_token_by_token(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(33)
    prompts = make.prompts(rng, 24)
    plans = [
        make.gated(rng, make.chained_edit(rng, OPERATIONS[i % len(OPERATIONS)], [0, 2], "all"), "token", 0.3)
        for i in range(24)
    ]
    shares = []
    for prompt, plan, result in zip(prompts, plans, engine.run(prompts, plans, MAX_TOKENS), strict=True):
        check(reference, prompt, plan, result)
        _, raw = reference.run(prompt, result.token_ids, plan)
        shares.append(float(met(plan.edits[0], plan, raw.astype(np.float64)).mean()))
    assert 0.2 < np.mean(shares) < 0.8


@ENGINES
def test_latched_gates_open_for_good_behind_the_token_that_met_them(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(34)
    prompts = make.prompts(rng, 24, longest=12)
    changes = [make.chained_edit(rng, OPERATIONS[i % len(OPERATIONS)], [0, 2], "all") for i in range(24)]
    plans = [make.gated(rng, change, "rest", [2.0, 25.0, 1e3][i % 3]) for i, change in enumerate(changes)]
    opened = []
    for prompt, plan, result in zip(prompts, plans, engine.run(prompts, plans, 30), strict=True):
        # Clamping multiplies what float32 loses in the pre-activation, token after token.
        check(reference, prompt, plan, result, tolerance=5e-4)
        _, raw = reference.run(prompt, result.token_ids, plan)
        first = first_met(plan.edits[0], plan, raw.astype(np.float64))
        opened.append("never" if first == END else "prompt" if first < len(prompt) else "generation")
    assert set(opened) == {"never", "prompt", "generation"}, opened


def test_latches_survive_preemption(eager_qwen3: tuple[Engine, Reference]) -> None:
    engine, reference = eager_qwen3
    rng = np.random.default_rng(35)
    prompts = [[int(t) for t in rng.integers(1, 500, size=30)] for _ in range(12)]
    change = make.chained_edit(rng, "add", [1], "all")
    plans = [make.gated(np.random.default_rng(i % 2), change, "rest", 14.0) for i in range(12)]
    before = engine.preemptions()
    results = engine.run(prompts, plans, 60)
    assert engine.preemptions() > before
    for case in zip(prompts, plans, results, strict=True):
        check(reference, *case)


@ENGINES
def test_a_warm_cache_gives_what_a_cold_one_gives(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(36)
    prompts = [[int(t) for t in rng.integers(1, 500, size=n)] for n in (70, 90, 100)]
    changes = [make.chained_edit(rng, op, [0, 1], "all") for op in OPERATIONS]
    plans = [Plan((change,)) for change in changes]
    plans += [make.gated(rng, change, "token", 0.0) for change in changes[:3]]
    latched = [make.gated(rng, change, "rest", 0.0) for change in changes[:2]]
    for i, plan in enumerate(plans + latched):
        prompt = prompts[i % 3]
        engine.reset_cache()
        cold, warm = (engine.run([prompt], [plan], MAX_TOKENS)[0] for _ in range(2))
        plain = engine.run([prompt], [None], MAX_TOKENS)[0]
        assert warm.cached_tokens == (0 if plan in latched else 32 * ((len(prompt) - 1) // 32))
        for result in (cold, warm):
            check(reference, prompt, plan, result)
        check(reference, prompt, Plan(), plain)
        assert warm.token_ids == cold.token_ids
        np.testing.assert_allclose(warm.logprobs, cold.logprobs, atol=LOGPROB_TOLERANCE)


def test_more_chains_than_there_is_room_for_wait(eager_qwen3: tuple[Engine, Reference]) -> None:
    engine, reference = eager_qwen3
    assert engine.layout.chains == 2
    rng = np.random.default_rng(37)
    prompts = make.prompts(rng, 9)
    plans: list[Plan] = [Plan((make.chained_edit(rng, "ablate", [1], "all"),)) for _ in range(5)]
    plans += [make.gated(rng, make.chained_edit(rng, "set", [1], "all"), "token", 0.0) for _ in range(4)]
    for case in zip(prompts, plans, engine.run(prompts, plans, MAX_TOKENS), strict=True):
        check(reference, *case)
    assert engine.scheduler.pilothouse_chains.held == 0


@ENGINES
def test_a_gate_that_stops_ends_the_sequence_with_the_token_predicted_where_it_was_met(
    which: str, request: pytest.FixtureRequest
) -> None:
    engine, reference = request.getfixturevalue(which)
    rng = np.random.default_rng(38)
    prompts = make.prompts(rng, 12, longest=40)
    change = make.chained_edit(rng, "add", [1], "generation")
    plans = [make.gated(rng, change, "token", [5.0, 25.0, 1e3][i % 3], stops=True) for i in range(12)]
    lengths = []
    for run in ("cold", "warm"):
        for prompt, plan, result in zip(prompts, plans, engine.run(prompts, plans, 30), strict=True):
            check(reference, prompt, plan, result)
            _, raw = reference.run(prompt, result.token_ids, Plan((), plan.readouts))
            beyond = np.flatnonzero(met(plan.edits[0], plan, raw.astype(np.float64))[len(prompt) - 1 : -1])
            n_tokens = int(beyond[0]) + 1 if len(beyond) else 30
            assert len(result.token_ids) == n_tokens, run
            assert result.ended == (("stop", "probe:probe") if len(beyond) else ("length", None))
            lengths.append(n_tokens)
    assert (min(lengths), max(lengths)) == (1, 30)
    assert len(set(lengths)) > 3


def test_a_gate_met_in_the_prompt_stops_after_one_token_cached_or_not(compiled_llama: tuple[Engine, Reference]) -> None:
    engine, _ = compiled_llama
    rng = np.random.default_rng(39)
    prompt = [int(t) for t in rng.integers(1, 500, size=70)]
    plan = make.gated(rng, make.chained_edit(rng, "add", [1], "prompt"), "token", 0.0, stops=True)
    plan = replace(plan, prompt_scores=True)
    engine.reset_cache()
    for cached in (0, 64):
        result = engine.run([prompt], [plan], 5)[0]
        assert (len(result.token_ids), result.cached_tokens, result.ended[0]) == (1, cached, "stop")
