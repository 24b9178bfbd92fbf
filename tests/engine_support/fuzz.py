"""Plays scenarios on an engine and checks everything that comes back against the reference."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings

from engine_support.changes import acting, stop_after
from engine_support.harness import Engine, Job, Reference, Result
from engine_support.parity import compare
from engine_support.scenarios import PHASES, Ask, Props, Scenario, scenarios
from pilothouse.api.receipts import tokens_edited
from pilothouse.core.gaps import find_gaps
from pilothouse.core.plans import Plan, edit_spans
from pilothouse.core.sites import Float32
from pilothouse.engine import scheduler

LONGEST_PROMPT = 220
"""Conversations that would outgrow the engine's context begin anew."""
MOST_STEPS = 3000
"""A phase takes at most a few hundred steps, unless somebody waits for what will never be free."""
BLOCK = 32
NEAR = 1e-4
"""Nearer than this to a gate's level or a feature's threshold, in spreads, float32 may fall on either side."""
SEED_VARIABLE = "PILOTHOUSE_FUZZ_SEED"


@dataclass
class Tally:
    """What has been played and compared. near_ties: sequences left alone, since float32 may decide either way; opened,
    closed: edits with a gate that acted somewhere, and nowhere; stopped: sequences that a gate ended."""

    scenarios: int = 0
    requests: int = 0
    sequences: int = 0
    scores: int = 0
    aborted: int = 0
    recomputed: int = 0
    cached: int = 0
    near_ties: int = 0
    opened: int = 0
    closed: int = 0
    stopped: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in vars(self).items())


@dataclass
class _Actor:
    """One request: what it asks, whose plan it has (its own, or that of the one it follows), its job once it came."""

    ask: Ask
    number: int
    planner: tuple[int, Ask]
    job: Job | None = None


class _Complaints(logging.Handler):
    """Keeps what the scheduler of an engine in this process reports as wrong and mends."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


@dataclass
class Player:
    """Plays scenarios on one engine, each from an empty cache."""

    engine: Engine
    reference: Reference
    in_process: bool
    tally: Tally = field(default_factory=Tally)
    _complaints: _Complaints = field(default_factory=_Complaints)

    def play(self, scenario: Scenario) -> None:
        """AssertionError when anything comes back otherwise than the reference says."""
        self.tally.scenarios += 1
        self._complaints = _Complaints()
        # Not a seed of each request's own: on CPUs vLLM fails when it prefills such a request in chunks.
        torch.manual_seed(scenario.seed)
        self.engine.reset_cache()
        props, cast = Props(scenario.seed), list[_Actor]()
        scheduler_log = logging.getLogger(scheduler.__name__)
        scheduler_log.addHandler(self._complaints)
        try:
            for phase in range(PHASES):
                actors = [_Actor(ask, i, (i, ask)) for i, ask in enumerate(scenario.asks) if ask.phase == phase]
                if scenario.forgets[phase]:
                    self.engine.reset_cache()
                self._run_phase(actors, props, cast)
                cast += actors
            self._check_nothing_is_left()
        finally:
            scheduler_log.removeHandler(self._complaints)
            self.engine.abandon()
        for actor in cast:
            self._check_job(actor)

    def _run_phase(self, actors: list[_Actor], props: Props, earlier: list[_Actor]) -> None:
        for step in range(MOST_STEPS):
            for actor in actors:
                ask = actor.ask
                if actor.job is None and ask.arrives <= step:
                    self._submit(actor, props, earlier)
                elif actor.job is not None and ask.aborted_after == step - ask.arrives:
                    self.engine.abort(actor.job)
            if self.engine.busy:
                self.engine.step()
            elif all(actor.job is not None for actor in actors):
                return
        raise AssertionError(f"requests still wait after {MOST_STEPS} steps")

    def _submit(self, actor: _Actor, props: Props, earlier: list[_Actor]) -> None:
        ask, begins = actor.ask, None
        if ask.follows is not None and earlier:
            first = earlier[ask.follows % len(earlier)]
            assert first.job is not None
            begins = first.job.prompt + (first.job.results[0].token_ids if first.job.results else [])
            if len(begins) + ask.tail > LONGEST_PROMPT:
                begins = None
            elif ask.keeps != "nothing":
                number, planned = first.planner
                actor.planner = number, ask.after(planned)
        prompt = props.prompt(actor.number, ask, begins)
        plan = props.plan(*actor.planner, len(prompt), self.engine.layout)
        sampling = {"temperature": 0.9} if ask.warm or ask.n > 1 else {}
        actor.job = self.engine.submit(prompt, plan, ask.max_tokens, n=ask.n, **sampling)

    def _check_nothing_is_left(self) -> None:
        # A last, plain request takes along what the scheduler still has to tell the worker of those that are gone.
        self.engine.run([[1, 2, 3]], [None], 2)
        if not self.in_process:
            return
        assert not self._complaints.records, f"the scheduler complains: {self._complaints.records}"
        engine_scheduler, board = self.engine.scheduler, self.engine.board
        for name in ("_held", "_pinned", "_refused", "_retired"):
            assert not getattr(engine_scheduler, name), f"{name} still knows requests that are over"
        assert not engine_scheduler._listener._buffers, "readings are kept of requests that are over"
        for name in ("rows", "chains", "columns"):
            table = getattr(engine_scheduler, f"pilothouse_{name}")
            table.check_integrity()
            assert not table.held, f"a place among the {name} is held by nobody"
        assert not len(board.spans), "the worker still knows requests that are over"
        latches = board.latches
        assert not latches._latched, "the worker still knows latches of requests that are over"
        assert bool((latches.first == -1).all()), "a latch is closed to whoever comes next"
        assert not latches.signs.any(), "a latch looks at the readouts of whoever comes next"

    def _check_job(self, actor: _Actor) -> None:
        job = actor.job
        assert job is not None
        if not job.results:
            assert job.aborted, "a request came to no end"
            self.tally.aborted += 1
            return
        self.tally.requests += 1
        for result in job.results:
            self.tally.sequences += 1
            expected = self.reference.run(job.prompt, result.token_ids, job.plan)
            if self.reference.nearest < NEAR:
                self.tally.near_ties += 1
                continue
            self.tally.scores += compare(expected, job.prompt, job.plan, result)
            self._check_end(actor, result, expected[1])
            self._check_books(job, result)
            self._check_gates(job, result, expected[1])

    def _check_end(self, actor: _Actor, result: Result, raw: Float32) -> None:
        """A sequence is as long as was asked, unless a gate stops it."""
        job = actor.job
        assert job is not None
        n_tokens, label = stop_after(job.plan, len(job.prompt), raw[:-1].astype(np.float64))
        stopped = n_tokens < actor.ask.max_tokens
        ended = ("stop", f"probe:{label}") if stopped else ("length", None)
        assert (len(result.token_ids), result.ended) == (min(n_tokens, actor.ask.max_tokens), ended)
        self.tally.stopped += stopped

    def _check_gates(self, job: Job, result: Result, raw: Float32) -> None:
        """What receipts say of gates: where each was open."""
        spans = edit_spans(job.plan.edits, len(job.prompt))
        for edit, span in zip(job.plan.edits, spans, strict=True):
            if edit.gate is None or edit.gate.stops:
                continue
            acts = acting(edit, job.plan, len(job.prompt), raw[:-1].astype(np.float64))
            self.tally.opened += bool(acts.any())
            self.tally.closed += not acts.any()
            # What a gate saw in the prompt is known to receipts only where prompt scores are read.
            if job.plan.prompt_scores:
                forwarded = [result.track.count_forwarded(p, p + 1) for p in np.flatnonzero(acts).tolist()]
                assert tokens_edited(job.plan, edit, span, result.track) == sum(forwarded)

    def _check_books(self, job: Job, result: Result) -> None:
        """What was reported of the positions: which were forwarded, how many of them edited."""
        runs, stop = result.runs, len(job.prompt) + len(result.token_ids) - 1
        if job.plan.empty:
            assert not runs, "a plain request has readings"
            return
        assert max(last for _, last in runs) == stop, f"{runs} does not end at {stop}"
        assert all(begin % BLOCK == 0 for begin, _ in runs), f"{runs} has holes"
        first = min(begin for begin, _ in runs)
        assert result.track.first_forwarded == first
        spans = edit_spans(job.plan.edits, len(job.prompt))
        assert not find_gaps(job.plan, spans, result.track)
        if _latched(job.plan, spans):
            assert all(begin == 0 for begin, _ in runs), f"a latch has not seen what is before {runs}"
        self.tally.cached += first > 0
        if len(runs) > 1:
            # Put back and begun again, perhaps behind blocks that were computed meanwhile.
            self.tally.recomputed += 1
            return
        if len(job.results) == 1:
            assert result.cached_tokens == first
        # Under a gate a position counts as edited, open or not: nobody but the device knows. What stops edits nothing.
        live = [span for edit, span in zip(job.plan.edits, spans, strict=True) if not edit.is_identity()]
        edited = sum(any(a <= position < b for a, b in live) for position in range(first, stop))
        assert result.edited == edited, f"{result.edited} positions were edited instead of {edited}"
        assert result.track.edited_reported == edited


def _latched(plan: Plan, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether an edit waits for a latch, at positions that there are."""
    pairs = zip(plan.edits, spans, strict=True)
    return any(edit.gate is not None and edit.gate.latched and start < stop for edit, (start, stop) in pairs)


def chosen_seed() -> int:
    """The seed from the environment, or a new one."""
    raw = os.environ.get(SEED_VARIABLE)
    return int(raw) if raw else random.SystemRandom().randrange(2**32)


def each_scenario(seed: int, examples: int, play: Callable[[Scenario], None]) -> None:
    """Give `play` that many scenarios; a failure says which seed brings it back."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        # Without shrinking: a failure shows at once, and its scenario is short enough to read.
        phases=(Phase.generate,),
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(scenarios())
    def attempt(scenario: Scenario) -> None:
        play(scenario)

    try:
        attempt()
    except BaseException as error:
        error.add_note(f"played with {SEED_VARIABLE}={seed}")
        raise
