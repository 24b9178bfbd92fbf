"""The prefix cache: what steering wrote is never served to anyone for whom it would have been computed differently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_support import plans as make
from engine_support.harness import Engine, Reference
from engine_support.parity import check

from pilothouse.core.plans import Plan

pytestmark = pytest.mark.engine

BLOCK = 32


@pytest.fixture
def case(compiled_llama: tuple[Engine, Reference]) -> tuple[Engine, Reference, list[int], np.random.Generator]:
    engine, reference = compiled_llama
    engine.reset_cache()
    rng = np.random.default_rng(11)
    return engine, reference, [int(t) for t in rng.integers(1, 500, size=100)], rng


def test_steered_then_plain_then_steered_equal_a_cold_cache(
    case: tuple[Engine, Reference, list[int], np.random.Generator],
) -> None:
    engine, reference, prompt, rng = case
    plan = Plan((make.edit(rng, [0, 2], "all", 3.0),), (make.readout(rng, [3]),))
    hits = []
    for now in (plan, Plan(), plan, Plan()):
        result = engine.run([prompt], [now], 6)[0]
        check(reference, prompt, now, result)
        hits.append(result.cached_tokens)
    # Neither finds the other's blocks; the second time each finds its own three full ones.
    assert hits == [0, 0, 3 * BLOCK, 3 * BLOCK]


def test_blocks_before_the_first_edit_are_shared(
    case: tuple[Engine, Reference, list[int], np.random.Generator],
) -> None:
    engine, reference, prompt, rng = case
    engine.run([prompt], [None], 2)
    plan = Plan((make.edit(rng, [1], "generation", 3.0),))
    result = engine.run([prompt], [plan], 6)[0]
    assert result.cached_tokens == 3 * BLOCK
    check(reference, prompt, plan, result)


def test_an_answer_generated_under_steering_is_not_reused_as_a_prompt(
    case: tuple[Engine, Reference, list[int], np.random.Generator],
) -> None:
    engine, reference, prompt, rng = case
    plan = Plan((make.edit(rng, [1], "generation", 3.0),))
    first = engine.run([prompt], [plan], 60)[0]
    second = prompt + first.token_ids[:-1]
    for follow_up in (plan, Plan(), replace(plan, readouts=(make.readout(rng, [2]),))):
        result = engine.run([second], [follow_up], 6)[0]
        check(reference, second, follow_up, result)
        # Only the blocks before position 99, the first that the first turn edited, hold the same thing.
        assert result.cached_tokens >= 3 * BLOCK
    assert engine.run([second], [plan], 1)[0].cached_tokens > 3 * BLOCK


def test_prompt_scores_do_not_depend_on_the_cache(
    case: tuple[Engine, Reference, list[int], np.random.Generator],
) -> None:
    engine, reference, prompt, rng = case
    plan = Plan((), (make.readout(rng, [0, 3]),), prompt_scores=True)
    for _ in range(2):
        check(reference, prompt, plan, engine.run([prompt], [plan], 4)[0])
