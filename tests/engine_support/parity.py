"""One result of the engine against the reference."""

from __future__ import annotations

import numpy as np

from engine_support.harness import Reference, Result
from pilothouse.core.plans import Plan
from pilothouse.core.sites import Float32

SCORE_TOLERANCE = 1e-4
"""Of the standard deviation of the readouts, as the largest difference."""
LOGPROB_TOLERANCE = 1e-4


def check(
    reference: Reference, prompt: list[int], plan: Plan, result: Result, tolerance: float = LOGPROB_TOLERANCE
) -> int:
    """Assert that a result equals the reference, log-probabilities within `tolerance` nats; the number of scores
    compared."""
    return compare(reference.run(prompt, result.token_ids, plan), prompt, plan, result, tolerance)


def compare(
    expected_run: tuple[Float32, Float32],
    prompt: list[int],
    plan: Plan,
    result: Result,
    tolerance: float = LOGPROB_TOLERANCE,
) -> int:
    """`check` against a run of the reference."""
    logprobs, raw = expected_run
    expected = [float(logprobs[i, token]) for i, token in enumerate(result.token_ids)]
    np.testing.assert_allclose(result.logprobs, expected, atol=tolerance)
    if not plan.readouts:
        return 0
    # The last generated token is never fed back, so it has no score.
    start, stop = 0 if plan.prompt_scores else len(prompt) - 1, len(prompt) + len(result.token_ids) - 1
    scores = result.track.scores(start, stop)
    assert not np.isnan(scores).any(), "a position that was forwarded has no score"
    assert np.abs(scores - raw[start:stop]).max() <= SCORE_TOLERANCE * raw.std()
    assert np.isnan(result.track.scores(stop, stop + 1)).all()
    return int(scores.size)
