"""The engine in bf16 against the reference in float32, on the same weights rounded to bf16.

bf16 has eight bits of fraction, so nothing agrees to 1e-4 any more. What steering adds and what probes read must stay
what it is up to that rounding: the bounds are two to three times what was measured, and far below what leaving an edit
out does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_support import plans as make
from engine_support.harness import Engine, Reference, Result

from pilothouse.core.config import EngineLayout
from pilothouse.core.plans import Plan

pytestmark = pytest.mark.engine

LEAST_CORRELATION = 0.999
"""Of all readouts of a batch with those of the reference."""
LARGEST_SCORE_ERROR = 0.15
"""In standard deviations of the readouts."""
LARGEST_LOGPROB_ERROR = 0.3
MEAN_LOGPROB_ERROR = 0.05

Case = tuple[list[int], Plan, Result]


@pytest.fixture(scope="module")
def bf16(qwen3: Path) -> Iterator[tuple[Engine, Reference]]:
    engine = Engine(qwen3, EngineLayout(), in_process=True, enforce_eager=True, dtype="bfloat16", block_size=32)
    reference = Reference(qwen3)
    reference.model.to(torch.bfloat16).to(torch.float32)
    yield engine, reference
    engine.close()


def errors(reference: Reference, cases: list[Case], plans: list[Plan]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of log-probabilities; readouts of the engine and of the reference in units of the latter's spread."""
    off, read, expected = list[float](), list[np.ndarray](), list[np.ndarray]()
    for (prompt, plan, result), teacher in zip(cases, plans, strict=True):
        logprobs, raw = reference.run(prompt, result.token_ids, teacher)
        off += [result.logprobs[i] - float(logprobs[i, token]) for i, token in enumerate(result.token_ids)]
        if plan.readouts:
            start, stop = 0 if plan.prompt_scores else len(prompt) - 1, len(prompt) + len(result.token_ids) - 1
            spread = raw.std()
            read.append(result.track.scores(start, stop).ravel() / spread)
            expected.append(raw[start:stop].ravel() / spread)
    return np.abs(off), np.concatenate(read), np.concatenate(expected)


def test_bf16_stays_within_its_rounding(bf16: tuple[Engine, Reference]) -> None:
    engine, reference = bf16
    rng = np.random.default_rng(20)
    prompts, plans = make.prompts(rng, 32), make.mixed_plans(rng, 32)
    cases = list(zip(prompts, plans, engine.run(prompts, plans, 10), strict=True))
    off, read, expected = errors(reference, cases, plans)
    correlation = np.corrcoef(read, expected)[0, 1]
    print(f"correlation {correlation:.6f}, scores {np.abs(read - expected).max():.4f}")
    print(f"log-probabilities {off.max():.4f}, mean {off.mean():.4f}")
    assert correlation > LEAST_CORRELATION
    assert np.abs(read - expected).max() < LARGEST_SCORE_ERROR
    assert off.max() < LARGEST_LOGPROB_ERROR
    assert off.mean() < MEAN_LOGPROB_ERROR


def test_the_bounds_of_bf16_are_narrower_than_a_missing_edit(bf16: tuple[Engine, Reference]) -> None:
    engine, reference = bf16
    rng = np.random.default_rng(21)
    probe = make.readout(rng, [2, 3])
    prompts, plans = make.prompts(rng, 8), [Plan((make.edit(rng, [1], "all", 2.0),), (probe,)) for _ in range(8)]
    cases = list(zip(prompts, plans, engine.run(prompts, plans, 10), strict=True))
    off, read, expected = errors(reference, cases, [Plan((), plan.readouts) for plan in plans])
    print(f"without edits: {np.corrcoef(read, expected)[0, 1]:.4f}, {off.max():.3f}, mean {off.mean():.3f}")
    assert np.corrcoef(read, expected)[0, 1] < LEAST_CORRELATION
    assert np.abs(read - expected).max() > LARGEST_SCORE_ERROR
    assert off.max() > LARGEST_LOGPROB_ERROR
    assert off.mean() > MEAN_LOGPROB_ERROR
