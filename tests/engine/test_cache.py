"""The prefix cache: what steering wrote is never served to anyone for whom it would have been computed differently, and
whatever is the same for two requests is computed once.

Each result is held against Hugging Face and against the same request in a cache of its own; each hit against what stock
vLLM hits for plain requests with the tokens that are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from engine_support import plans as make
from engine_support.harness import Engine, Reference, Result
from engine_support.parity import LOGPROB_TOLERANCE, check

from pilothouse.core.edits import PositionRange
from pilothouse.core.plans import Plan

pytestmark = pytest.mark.engine

BLOCK = 32
PLAIN = Plan()


@dataclass
class Case:
    """One conversation with both engines, each with an empty cache at first."""

    engine: Engine
    reference: Reference
    stock: Engine
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(11))
    _salts: int = 0

    def forget(self) -> None:
        self.engine.reset_cache()
        self.stock.reset_cache()

    def tokens(self, n: int) -> list[int]:
        return [int(t) for t in self.rng.integers(1, 500, size=n)]

    def ask(self, prompt: list[int], plan: Plan, max_tokens: int = 6) -> Result:
        """The result, which is that of a cold cache and that of Hugging Face."""
        warm = self.engine.run([prompt], [plan], max_tokens)[0]
        self._salts += 1
        cold = self.engine.run([prompt], [plan], max_tokens, cache_salt=f"{id(self)} {self._salts}")[0]
        assert cold.cached_tokens == 0
        assert warm.token_ids == cold.token_ids
        np.testing.assert_allclose(warm.logprobs, cold.logprobs, atol=LOGPROB_TOLERANCE)
        for result in (warm, cold):
            check(self.reference, prompt, plan, result)
        return warm

    def stock_hits(self, prompts: Sequence[list[int]]) -> list[int]:
        """What stock vLLM hits for these plain requests one after the other, from an empty cache."""
        self.stock.reset_cache()
        return [self.stock.run([prompt], [None], 1)[0].cached_tokens for prompt in prompts]


@pytest.fixture
def case(compiled_llama: tuple[Engine, Reference], stock_llama: Engine) -> Case:
    case = Case(*compiled_llama, stock_llama)
    case.forget()
    return case


@pytest.mark.parametrize("steered_first", [True, False])
def test_steered_and_plain_in_turn_never_see_each_others_blocks(case: Case, steered_first: bool) -> None:
    prompt = case.tokens(100)
    plan = Plan((make.edit(case.rng, [0, 2], "all", 3.0),), (make.readout(case.rng, [3]),))
    order = (plan, PLAIN) if steered_first else (PLAIN, plan)
    hits = [case.ask(prompt, now).cached_tokens for now in order * 2]
    first, again = case.stock_hits([prompt, prompt])
    assert hits == [first, first, again, again] == [0, 0, 3 * BLOCK, 3 * BLOCK]


def test_blocks_before_the_first_edit_are_shared(case: Case) -> None:
    prompt = case.tokens(100)
    case.ask(prompt, PLAIN, 2)
    result = case.ask(prompt, Plan((make.edit(case.rng, [1], "generation", 3.0),)))
    assert result.cached_tokens == case.stock_hits([prompt, prompt])[1] == 3 * BLOCK


def test_the_same_plan_over_two_turns_finds_all_of_the_first(case: Case) -> None:
    prompt = case.tokens(100)
    plan = Plan((make.edit(case.rng, [1, 3], "all", 3.0),), (make.readout(case.rng, [2]),))
    first = case.ask(prompt, plan, 60)
    # The last token of an answer is not fed back in the first turn; it is in the second.
    second = [*prompt, *first.token_ids, *case.tokens(20)]
    result = case.ask(second, plan)
    assert result.cached_tokens == case.stock_hits([[*prompt, *first.token_ids[:-1]], second])[1] == 4 * BLOCK


@pytest.mark.parametrize("follow_up", ["the same plan", "plain", "the same plan and a probe"])
def test_an_answer_generated_under_steering_is_not_reused_as_a_prompt(case: Case, follow_up: str) -> None:
    prompt = case.tokens(100)
    plan = Plan((make.edit(case.rng, [1], "generation", 3.0),))
    now = {"the same plan": plan, "plain": PLAIN}.get(follow_up) or replace(
        plan, readouts=(make.readout(case.rng, [2]),)
    )
    first = case.ask(prompt, plan, 60)
    second = prompt + first.token_ids[:-1]
    result = case.ask(second, now)
    # Only what lies before position 99, the first that the first turn edited, is the same for both.
    assert result.cached_tokens == case.stock_hits([prompt[:99], second])[1] == 3 * BLOCK
    assert case.ask(second, now, 1).cached_tokens == case.stock_hits([second, second])[1] == 4 * BLOCK


def test_the_same_edit_at_other_positions_is_another_edit(case: Case) -> None:
    prompt = case.tokens(100)
    change = make.edit(case.rng, [1], "all", 3.0)
    for positions in ("all", PositionRange(0, 20), PositionRange(10, 40), "prompt"):
        result = case.ask(prompt, Plan((replace(change, positions=positions),)))
        # "prompt" ends behind the last full block: to there it is what "all" is.
        assert result.cached_tokens == (3 * BLOCK if positions == "prompt" else 0)


def test_two_plans_share_a_long_unsteered_system_prompt(case: Case) -> None:
    system = case.tokens(130)
    prompts = [system + case.tokens(n) for n in (25, 40, 40)]
    plans = [Plan((make.edit(case.rng, [layer], PositionRange(130, 900), 3.0),)) for layer in (0, 2)]
    hits = [case.ask(prompt, plan).cached_tokens for prompt, plan in zip(prompts, [*plans, PLAIN], strict=True)]
    assert hits == case.stock_hits(prompts) == [0, 4 * BLOCK, 4 * BLOCK]


def test_prompt_scores_are_the_same_from_a_warm_cache_and_hit_what_stock_vllm_hits(case: Case) -> None:
    prompt = case.tokens(100)
    plan = Plan((make.edit(case.rng, [0], "all", 2.0),), (make.readout(case.rng, [0, 3]),), prompt_scores=True)
    hits = [case.ask(prompt, plan).cached_tokens for _ in range(2)]
    assert hits == case.stock_hits([prompt, prompt]) == [0, 3 * BLOCK]


def test_prompt_scores_of_a_new_probe_are_computed_though_the_blocks_are_cached(case: Case) -> None:
    prompt, shared = case.tokens(100), make.readout(case.rng, [1])
    case.ask(prompt, Plan((), (shared,)))
    for readouts in ((shared,), (make.readout(case.rng, [2]), shared)):
        plan = Plan((), readouts, prompt_scores=True)
        assert [case.ask(prompt, plan).cached_tokens for _ in range(2)] == [0, 3 * BLOCK]
