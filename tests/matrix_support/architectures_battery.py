"""What every architecture is put through, and the five questions asked of the answers.

One mixed batch, in which requests that only read, that add, that ablate and that ask for nothing share every step, and
some are given up on the way. The reference is Hugging Face in float32 with hooks on its decoder blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from engine_support import plans as make
from engine_support.harness import Engine, Job, Reference, Result
from engine_support.parity import SCORE_TOLERANCE

from pilothouse.core.edits import PositionRange
from pilothouse.core.gaps import find_gaps
from pilothouse.core.plans import Plan, edit_spans
from pilothouse.core.sites import Float32
from pilothouse.engine.reference import NoReferenceError, ReferenceRequest, decode

LOGPROB_TOLERANCE = 1e-4
"""Nats."""
MOVED = 0.05
"""Nats. Steering that moves log-probabilities by less would not be missed."""
MAX_TOKENS = 6
D_MODEL, N_LAYERS, VOCABULARY = 64, 4, 500
ABORTED_AFTER = 3


@dataclass(frozen=True)
class Case:
    """A request, what the engine answered, and the reference's log-probabilities of the answer and readouts [n_tokens,
    n_readouts], with and without the plan's edits."""

    prompt: list[int]
    plan: Plan
    result: Result
    expected: Float32
    unsteered: Float32
    raw: Float32

    @property
    def end(self) -> int:
        """One behind the last position that is forwarded: the last generated token is never fed back."""
        return len(self.prompt) + len(self.result.token_ids) - 1


@dataclass(frozen=True)
class Gathered:
    """tolerance: of log-probabilities, in nats; cases: the mixed batch; aborted: what was given up in its midst; held:
    places that are still taken after it; before, after: the same plain requests, first and last of all; own: what the
    start-up self-test compares with, log-probabilities by number of the case, or why it has nothing to compare with.
    """

    tolerance: float
    cases: list[Case]
    aborted: list[Job]
    held: dict[str, int]
    before: list[Result]
    after: list[Result]
    own: dict[int, Float32] | str
    not_spelled_out: str | None


def mixed_plans(rng: np.random.Generator) -> list[Plan]:
    """Plain requests between some that add at two layers or at the ends, ablate, set, keep norms, and read."""
    readouts = [make.readout(rng, [layer]) for layer in range(N_LAYERS)]
    several = make.readout(rng, list(range(N_LAYERS)))
    change = make.chained_edit
    return [
        Plan(),
        Plan((change(rng, "add", [1, 2], "all"),), (several,)),
        Plan((change(rng, "add", [3], "generation"), change(rng, "add", [0], "prompt"))),
        Plan((change(rng, "ablate", [1, 2], "all"), change(rng, "set", [2], "all")), tuple(readouts[:2]), True),
        Plan((), tuple(readouts), True),
        Plan(),
        Plan(
            (
                change(rng, "add", [2], PositionRange(1, 5)),
                change(rng, "ablate", [2, 3], "generation", preserve_norm=True),
            ),
            tuple(readouts),
            True,
        ),
        Plan((change(rng, "set", [3], "last_prompt"),), (several,)),
    ]


def gather(
    engine: Engine, reference: Reference, tolerance: float = LOGPROB_TOLERANCE, not_spelled_out: str | None = None
) -> Gathered:
    """Put an engine of this process, whose model has the sizes above, through everything.

    not_spelled_out: what is in the reason for which the start-up self-test has no reference, where it has none.
    """
    rng = np.random.default_rng(31)
    plans = mixed_plans(rng)
    prompts, plain = make.prompts(rng, len(plans), 40), make.prompts(rng, 2, 40)
    before = engine.run(plain, [None, None], MAX_TOKENS)
    jobs = [engine.submit(prompt, plan, MAX_TOKENS) for prompt, plan in zip(prompts, plans, strict=True)]
    aborted = [engine.submit(p, mixed_plans(rng)[3], MAX_TOKENS) for p in make.prompts(rng, 2, 40)]
    for _ in range(ABORTED_AFTER):
        engine.step()
    for job in aborted:
        engine.abort(job)
    engine.drain()
    # Requests that are over are let go with the next step that is scheduled.
    after = engine.run(plain, [None, None], MAX_TOKENS)
    cases = [_case(reference, job) for job in jobs]
    own = _own_reference(engine, cases)
    return Gathered(tolerance, cases, aborted, _held(engine), before, after, own, not_spelled_out)


def _own_reference(engine: Engine, cases: list[Case]) -> dict[int, Float32] | str:
    """What the self-test's reference says of the steered cases, or why it says nothing."""
    found = {}
    for number, case in enumerate(cases):
        if case.plan.edits:
            tokens = case.result.token_ids
            request = msgspec.msgpack.encode(ReferenceRequest.of(case.prompt, tokens, case.plan))
            try:
                answer = decode(engine.llm.collective_rpc("pilothouse_reference", args=(request,)))
            except NoReferenceError as error:
                return str(error)
            table = answer.table(len(case.prompt) + len(tokens))[len(case.prompt) - 1 : -1]
            found[number] = table[np.arange(len(tokens)), tokens]
    return found


def _case(reference: Reference, job: Job) -> Case:
    (result,) = job.results
    expected, raw = reference.run(job.prompt, result.token_ids, job.plan)
    unsteered, _ = reference.run(job.prompt, result.token_ids, None)
    of_tokens = np.arange(len(result.token_ids)), result.token_ids
    return Case(job.prompt, job.plan, result, expected[of_tokens], unsteered[of_tokens], raw)


def _held(engine: Engine) -> dict[str, int]:
    scheduler, board = engine.scheduler, engine.board
    return {
        "rows": scheduler.pilothouse_rows.held,
        "chains": scheduler.pilothouse_chains.held,
        "columns": scheduler.pilothouse_columns.held,
        "faults": scheduler.pilothouse_faults,
        "lines": len(board.spans),
    }


def readouts(gathered: Gathered) -> None:
    """Every readout that was asked for equals the reference, and the token that is never fed back has none."""
    compared = 0
    for case in gathered.cases:
        if not case.plan.readouts:
            continue
        start = 0 if case.plan.prompt_scores else len(case.prompt) - 1
        found, expected = case.result.track.scores(start, case.end), case.raw[start : case.end]
        assert not np.isnan(found).any(), "a position that was forwarded has no score"
        error = np.abs(found - expected).max(axis=0) / case.raw.std(axis=0)
        assert error.max() <= SCORE_TOLERANCE, f"readouts differ by {error} of their spread"
        assert np.isnan(case.result.track.scores(case.end, case.end + 1)).all()
        compared += found.size
    assert compared > 100


def log_probabilities(gathered: Gathered) -> None:
    """Those of every steered request equal the reference, and are not those of an unsteered one."""
    steered = [case for case in gathered.cases if case.plan.edits]
    moved = [bool(np.abs(case.expected - case.unsteered).max() > MOVED) for case in steered]
    assert sum(moved) >= 4, f"plans that change nothing show nothing: {moved}"
    for case in steered:
        np.testing.assert_allclose(case.result.logprobs, case.expected, rtol=0, atol=gathered.tolerance)
    if isinstance(gathered.own, str):
        assert gathered.not_spelled_out is not None, gathered.own
        assert gathered.not_spelled_out in gathered.own
        return
    for number, own in gathered.own.items():
        np.testing.assert_allclose(own, gathered.cases[number].expected, rtol=0, atol=gathered.tolerance)


def receipts(gathered: Gathered) -> None:
    """As many positions are reported as edited as the plan's spans have, each counted once, and none is missing."""
    counted = 0
    for case in gathered.cases:
        if case.plan.empty:
            assert not case.result.runs, "nothing is reported of a plain request"
            continue
        spans = edit_spans(case.plan.edits, len(case.prompt))
        assert case.result.edited == len({p for start, stop in spans for p in range(start, min(stop, case.end))})
        assert case.result.runs == [(0, case.end)]
        assert not find_gaps(case.plan, spans, case.result.track)
        counted += case.result.edited
    assert counted > 50


def unsteered(gathered: Gathered) -> None:
    """Plain requests, and such as only read, are the model's own among steered ones."""
    plain = [case for case in gathered.cases if not case.plan.edits]
    assert sum(case.plan.empty for case in plain) == 2
    for case in plain:
        np.testing.assert_allclose(case.result.logprobs, case.unsteered, rtol=0, atol=gathered.tolerance)


def no_leaks(gathered: Gathered) -> None:
    """Nothing is held after aborts, and plain requests are answered as at first."""
    assert all(job.aborted and not job.results for job in gathered.aborted)
    assert gathered.held == dict.fromkeys(gathered.held, 0)
    for first, last in zip(gathered.before, gathered.after, strict=True):
        assert last.token_ids == first.token_ids
        np.testing.assert_allclose(last.logprobs, first.logprobs, rtol=0, atol=gathered.tolerance)


CHECKS: dict[str, Callable[[Gathered], None]] = {
    "readouts": readouts,
    "log-probabilities": log_probabilities,
    "receipts": receipts,
    "unsteered": unsteered,
    "no leaks": no_leaks,
}
