"""Whoever does not ask for steering gets what stock vLLM gives, token for token, whatever others ask for."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import plans as make
from engine_support.harness import Engine, Reference

from pilothouse.core.plans import Plan

pytestmark = pytest.mark.engine

PROMPTS = 200
MAX_TOKENS = 16
NEAR_TIE = 1e-4
"""Two best tokens closer than this in log-probability may come out in either order: batches sum in other orders."""
MOST_NEAR_TIES = 2


def test_two_hundred_plain_requests_among_steered_ones_equal_stock_vllm(
    compiled_llama: tuple[Engine, Reference], stock_llama: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, reference = compiled_llama
    rng = np.random.default_rng(30)
    prompts, plans = make.prompts(rng, PROMPTS), make.mixed_plans(rng, PROMPTS)
    assert all(plan.edits for plan in plans[1::2])
    stock = stock_llama.run(prompts, [None] * PROMPTS, MAX_TOKENS)
    # Each plain request has a steered one beside it, with the same prompt.
    twice = [prompt for prompt in prompts for _ in range(2)]
    mixed = [plan for steered in plans for plan in (None, steered)]
    engine.reset_cache()
    results = engine.run(twice, mixed, MAX_TOKENS)
    compared = ties = 0
    for prompt, ours, theirs in zip(prompts, results[::2], stock, strict=True):
        same = common(ours.token_ids, theirs.token_ids)
        compared += same
        np.testing.assert_allclose(ours.logprobs[:same], theirs.logprobs[:same], atol=NEAR_TIE)
        if same < MAX_TOKENS:
            # Behind a near tie the sequences are different ones; nothing more is to be compared.
            best, second = np.sort(reference.run(prompt, theirs.token_ids, Plan())[0][same])[:-3:-1]
            assert best - second < NEAR_TIE, f"token {same} differs though {best - second} apart"
            ties += 1
    steered = results[1::2]
    changed = sum(a.token_ids != b.token_ids for a, b, plan in zip(steered, stock, plans, strict=True) if plan.edits)
    with capsys.disabled():
        print(f"\n{compared} tokens equal to stock vLLM's, {ties} near ties, {changed} steered neighbours differ")
    assert ties <= MOST_NEAR_TIES
    assert compared >= PROMPTS * MAX_TOKENS - MOST_NEAR_TIES * MAX_TOKENS
    assert changed > PROMPTS // 2


def common(one: list[int], other: list[int]) -> int:
    """How many leading tokens are equal."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
