"""What every way of running the engine is put through, and the five questions asked of the answers.

One mixed batch of plain, steered, gated and read requests, the same prompts again behind a warm cache, aborts, and as
many plans at once as there are places. The reference is Hugging Face in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from engine_support import plans as make
from engine_support.changes import met
from engine_support.harness import HERE, Engine, Job, Reference, Result
from engine_support.parity import LOGPROB_TOLERANCE, check, compare
from engine_support.situations import run_with_aborts, take_every_place

from pilothouse.api.receipts import receipts, tokens_edited
from pilothouse.core.edits import OPERATIONS
from pilothouse.core.gaps import find_gaps
from pilothouse.core.plans import Plan, edit_spans
from pilothouse.core.sites import Float32

MAX_TOKENS = 10
MOVED = 0.05
"""Nats. Steering that moves log-probabilities by less would not be missed."""


@dataclass(frozen=True)
class Case:
    """A request, what the engine answered, and log-probabilities and readouts of the reference, with and without its
    plan's edits."""

    prompt: list[int]
    plan: Plan
    result: Result
    expected: tuple[Float32, Float32]
    unsteered: Float32


@dataclass(frozen=True)
class Gathered:
    """cases: cold, then behind a warm cache; aborted: every third was given up; places: every one of them was taken at
    once; before, after: the same plain prompts, first of all and last of all."""

    engine: Engine
    reference: Reference
    tolerance: float
    max_tokens: int
    cases: list[Case]
    aborted: list[Job]
    places: tuple[list[list[int]], list[Plan], list[Result]]
    before: list[Result]
    after: list[Result]


def gather(
    engine: Engine,
    reference: Reference,
    *,
    latches: bool = True,
    tolerance: float = LOGPROB_TOLERANCE,
    max_tokens: int = MAX_TOKENS,
    **sampling: int,
) -> Gathered:
    """Put an engine of a model of `conftest.SHAPE` through everything.

    latches: whether gates of scope `rest` are served; tolerance: of log-probabilities, in nats.
    """
    rng = np.random.default_rng(11)
    plans = [*_plans(rng, latches), *[Plan()] * 4]
    prompts = [*make.prompts(rng, len(plans) - 2), *([int(t) for t in rng.integers(1, 500, size=70)] for _ in range(2))]
    plain = make.prompts(rng, 4)
    before = engine.run(plain, [None] * 4, max_tokens, **sampling)
    cases = [
        _case(reference, prompt, plan, result)
        for _ in ("cold", "warm")
        for prompt, plan, result in zip(
            prompts, plans, engine.run(prompts, list(plans), max_tokens, **sampling), strict=True
        )
    ]
    aborted = run_with_aborts(engine, prompts, plans, after=4)
    places = take_every_place(engine, 12)
    return Gathered(
        engine,
        reference,
        tolerance,
        max_tokens,
        cases,
        aborted,
        places,
        before,
        engine.run(plain, [None] * 4, max_tokens, **sampling),
    )


def _plans(rng: np.random.Generator, latches: bool) -> list[Plan]:
    """Every selector and operation, readouts of every layer, and gates of the scopes that are served."""
    change = make.chained_edit(rng, "add", [1], "all")
    late = replace(change, positions="generation")
    gates = [make.gated(rng, change, "token", 1.0)]
    gates += [make.gated(rng, late, "token", far, stops=True) for far in (2.0, 6.0, 12.0, 18.0, 1e3)]
    if latches:
        gates.append(make.gated(rng, late, "rest", 1.0))
    return [*make.mixed_plans(rng, 12), *make.chained_plans(rng, 7), *gates]


def _case(reference: Reference, prompt: list[int], plan: Plan, result: Result) -> Case:
    unsteered, _ = reference.run(prompt, result.token_ids, None)
    return Case(prompt, plan, result, reference.run(prompt, result.token_ids, plan), unsteered)


def readouts(gathered: Gathered) -> None:
    """Every readout equals the reference, and the token that is never fed back has none."""
    read = [case for case in gathered.cases if case.plan.readouts]
    compared = sum(
        compare(case.expected, case.prompt, case.plan, case.result, max(gathered.tolerance, LOGPROB_TOLERANCE))
        for case in read
    )
    assert {layer for case in read for r in case.plan.readouts for layer in r.direction.layers} == {0, 1, 2, 3}
    assert compared > 500


def log_probabilities(gathered: Gathered) -> None:
    """Those of every steered request equal the reference, and are not those of an unsteered one."""
    stops(gathered)
    steered = [c for c in gathered.cases if any(e.gate is None or not e.gate.stops for e in c.plan.edits)]
    assert {edit.op for case in steered for edit in case.plan.edits} == set(OPERATIONS)
    moved = []
    for case in steered:
        found = np.array(case.result.logprobs)
        np.testing.assert_allclose(found, _of_tokens(case.expected[0], case), atol=gathered.tolerance)
        moved.append(np.abs(found - _of_tokens(case.unsteered, case)).max() > MOVED)
    assert sum(moved) > 0.6 * len(moved), f"only {sum(moved)} of {len(moved)} plans changed anything"


def receipts_count(gathered: Gathered) -> None:
    """A receipt counts the positions of its span that were forwarded, and every layer and operation stands in it."""
    for case in gathered.cases:
        track, spans = case.result.track, edit_spans(case.plan.edits, len(case.prompt))
        if case.plan.empty:
            assert not case.result.runs
            continue
        assert not find_gaps(case.plan, spans, track)
        first = track.first_forwarded
        end = len(case.prompt) + len(case.result.token_ids) - 1
        assert max(stop for _, stop in case.result.runs) == end, "a position that is not of the sequence was counted"
        live = [span for edit, span in zip(case.plan.edits, spans, strict=True) if not edit.is_identity()]
        assert case.result.edited == sum(any(a <= p < b for a, b in live) for p in range(first, end))
        for edit, (start, stop), receipt in zip(case.plan.edits, spans, receipts(case.plan, spans, track), strict=True):
            assert (receipt["op"], receipt["layers"]) == (edit.op, sorted(edit.coefficients))
            if edit.gate is None:
                assert receipt["tokens_edited"] == max(min(stop, end) - max(start, first), 0)
            elif case.plan.prompt_scores:
                assert receipt["tokens_edited"] == tokens_edited(case.plan, edit, (start, stop), track) <= end - first


def stops(gathered: Gathered) -> None:
    """A gate that stops ends its sequence with the token predicted where it was met, and at no other."""
    ended = []
    for case in gathered.cases:
        if not any(edit.gate is not None and edit.gate.stops for edit in case.plan.edits):
            continue
        seen = met(case.plan.edits[0], case.plan, case.expected[1].astype(np.float64))[len(case.prompt) - 1 : -1]
        assert not seen[:-1].any(), "it should have ended before"
        assert case.result.ended == (("stop", "probe:probe") if seen[-1] else ("length", None))
        ended.append(len(case.result.token_ids))
    assert min(ended) < max(ended) == gathered.max_tokens


def unsteered(gathered: Gathered) -> None:
    """Plain requests among steered ones, cold and warm, are the model's own."""
    plain = [case for case in gathered.cases if not case.plan.edits]
    assert sum(case.plan.empty for case in plain) >= 8
    for case in plain:
        np.testing.assert_allclose(case.result.logprobs, _of_tokens(case.unsteered, case), atol=gathered.tolerance)


def no_leaks(gathered: Gathered) -> None:
    """After aborts every place can be taken again, and plain requests are answered as at first. In this process the
    scheduler can be asked whether it ever found a place that was not given back."""
    if gathered.engine in HERE:
        assert not gathered.engine.scheduler.pilothouse_faults
    finished = [(job, result) for job in gathered.aborted for result in job.results]
    given_up = [job for job in gathered.aborted if job.aborted]
    assert given_up
    assert len(finished) == len(gathered.aborted) - len(given_up)
    for job, result in finished:
        check(gathered.reference, job.prompt, job.plan, result, gathered.tolerance)
    for prompt, plan, result in zip(*gathered.places, strict=True):
        check(gathered.reference, prompt, plan, result, gathered.tolerance)
    assert [r.token_ids for r in gathered.after] == [r.token_ids for r in gathered.before]
    np.testing.assert_allclose(
        [r.logprobs for r in gathered.after], [r.logprobs for r in gathered.before], atol=gathered.tolerance
    )


def _of_tokens(logprobs: Float32, case: Case) -> Sequence[float]:
    return [float(logprobs[i, token]) for i, token in enumerate(case.result.token_ids)]


CHECKS: dict[str, Callable[[Gathered], None]] = {
    "readouts": readouts,
    "log-probabilities": log_probabilities,
    "receipts": receipts_count,
    "unsteered": unsteered,
    "no leaks": no_leaks,
}
