"""Gaps by themselves: none in whatever order a healthy engine works, and every planted fault is found and counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange
from pilothouse.core.gaps import Gap, asked_for, describe_gaps, find_gaps
from pilothouse.core.messages import Reading
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.records import GapKind
from pilothouse.core.tracks import ChoiceTrack

ROW = Direction({0: np.ones(2, dtype=np.float32)})
Span = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A request and how it is run: `cached` prompt positions come from the cache; each of `steps` forwards a number of
    positions and may then be preempted, back to a position that it has passed; the rest runs in one step."""

    n_prompt: int
    n_tokens: int
    spans: tuple[Span, ...]
    identities: tuple[bool, ...]
    probed: bool
    prompt_scores: bool
    cached: int
    ahead: bool
    steps: tuple[tuple[int, int | None], ...] = ()

    @property
    def plan(self) -> Plan:
        edits = tuple(
            Edit("v", ROW, {0: 0.0 if nothing else 1.0}, PositionRange(*span))
            for span, nothing in zip(self.spans, self.identities, strict=True)
        )
        readouts = (Readout("p", ROW),) if self.probed else ()
        return Plan(edits, readouts, prompt_scores=self.probed and self.prompt_scores)

    @property
    def stop(self) -> int:
        """The position of the last generated token, which need not be forwarded."""
        return self.n_prompt + self.n_tokens - 1

    def is_edited(self, position: int) -> bool:
        spans = zip(self.spans, self.identities, strict=True)
        return any(a <= position < b and not nothing for (a, b), nothing in spans)

    def readings(self) -> list[Reading]:
        found = []
        read_from = 0 if self.prompt_scores else self.n_prompt - 1
        if self.probed and read_from < self.cached:
            found.append(Reading((), ((0, self.cached),), bytes(4 * self.cached)))
        position, end = self.cached, self.stop + self.ahead
        for count, back in (*self.steps, (end, None)):
            stop = min(position + count, end)
            if stop > position:
                found.append(self.reading(position, stop, read_from))
            position = stop if back is None else min(back, stop)
        return found

    def reading(self, start: int, stop: int, read_from: int) -> Reading:
        edited = sum(map(self.is_edited, range(start, stop)))
        first = max(start, read_from)
        scored = max(stop - first, 0) if self.probed else 0
        return Reading(
            ((start, stop - start, edited),), ((first, scored),) if scored else (), np.full(scored, 1, "<f4").tobytes()
        )

    def gaps(self, readings: list[Reading], finish: str | None = "stop") -> dict[GapKind, int]:
        """What is missing when these readings arrive."""
        track = ChoiceTrack(self.n_prompt, int(self.probed), list(range(self.n_tokens)), finish)
        for reading in readings:
            track.add(reading)
        return {gap.kind: gap.positions for gap in find_gaps(self.plan, self.spans, track)}


SPANS = st.tuples(st.integers(0, 30), st.integers(1, 30)).map(lambda s: (s[0], s[0] + s[1]))
STEPS = st.lists(st.tuples(st.integers(1, 12), st.none() | st.integers(0, 40)), max_size=12)


@st.composite
def cases(draw: st.DrawFn, preempted: bool = True) -> Case:
    n_prompt = draw(st.integers(1, 20))
    edits = draw(st.lists(st.tuples(SPANS, st.booleans()), max_size=3))
    steps = draw(STEPS)
    return Case(
        n_prompt=n_prompt,
        n_tokens=draw(st.integers(1, 20)),
        spans=tuple(span for span, _ in edits),
        identities=tuple(nothing for _, nothing in edits),
        probed=draw(st.booleans()) or not edits,
        prompt_scores=draw(st.booleans()),
        cached=draw(st.integers(0, n_prompt - 1)),
        ahead=draw(st.booleans()),
        steps=tuple((count, back if preempted else None) for count, back in steps),
    )


# How fast the machine makes up a case is not what this asks.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(cases())
def test_a_healthy_engine_leaves_no_gap(case: Case) -> None:
    assert case.gaps(case.readings()) == {}


@settings(deadline=None)
@given(cases(preempted=False), st.data())
def test_a_reading_that_is_lost_is_found(case: Case, data: st.DataObject) -> None:
    readings = case.readings()
    runs = [reading.runs[0] if reading.runs else (0, 0, 0) for reading in readings]
    # A lost reading at the start of a prompt looks like the cache, unless it holds the prompt's last token.
    telling = [i for i, (start, n, _) in enumerate(runs) if start < case.stop and start + n >= case.n_prompt]
    lost = data.draw(st.sampled_from(telling))
    start, count, _ = runs[lost]
    gaps = case.gaps([*readings[:lost], *readings[lost + 1 :]])
    earlier = start > case.cached
    expected = range(start if earlier else case.n_prompt - 1, min(start + count, case.stop))
    assert gaps["forwarded"] == len(expected)
    assert "edited" not in gaps


@settings(deadline=None)
@given(cases())
def test_all_readings_lost_is_not_a_request_from_the_cache(case: Case) -> None:
    gaps = case.gaps([])
    assert gaps["forwarded"] == case.n_tokens
    wants_prompt = case.probed and case.prompt_scores and case.n_prompt > 1
    assert gaps.get("scored", 0) == (case.n_prompt - 1 if wants_prompt else 0)


@settings(deadline=None)
@given(cases(preempted=False), st.data())
def test_every_edit_that_is_not_reported_is_counted(case: Case, data: st.DataObject) -> None:
    readings = case.readings()
    edited = sum(run[2] for reading in readings for run in reading.runs)
    less = data.draw(st.integers(0, edited))
    left, changed = less, []
    for reading in readings:
        runs = []
        for start, count, here in reading.runs:
            forgotten = min(left, here)
            left -= forgotten
            runs.append((start, count, here - forgotten))
        changed.append(Reading(tuple(runs), reading.score_runs, reading.scores))
    assert case.gaps(changed) == ({"edited": less} if less else {})


@settings(deadline=None)
@given(cases(), st.data())
def test_every_position_that_was_not_scored_is_counted(case: Case, data: st.DataObject) -> None:
    case = replace(case, probed=True)
    first = 0 if case.prompt_scores else case.n_prompt - 1
    unread = data.draw(st.sets(st.integers(first, case.stop - 1)) if first < case.stop else st.just(set[int]()))
    changed = []
    for reading in case.readings():
        positions = [p for start, n in reading.score_runs for p in range(start, start + n) if p not in unread]
        changed.append(Reading(reading.runs, tuple((p, 1) for p in positions), bytes(4 * len(positions))))
    assert case.gaps(changed) == ({"scored": len(unread)} if unread else {})


def test_a_preempted_request_may_find_more_of_its_prompt_in_the_cache_than_it_had_run() -> None:
    case = Case(20, 2, (), (), probed=True, prompt_scores=True, cached=0, ahead=False)
    begun, kept, rest = case.reading(0, 5, 0), Reading((), ((0, 16),), bytes(64)), case.reading(16, 21, 0)
    assert case.gaps([begun, kept, rest]) == {}
    assert case.gaps([begun, rest]) == {"forwarded": 11}


@settings(deadline=None)
@given(cases(), st.sampled_from([None, "abort", "error"]))
def test_a_sequence_that_did_not_end_owes_nothing(case: Case, finish: str | None) -> None:
    assert case.gaps([], finish) == {}


def test_a_plain_request_and_one_without_tokens_owe_nothing() -> None:
    track = ChoiceTrack(5, 0, [1, 2], "stop")
    assert find_gaps(Plan(), [], track) == ()
    nothing = Case(5, 0, (), (), probed=True, prompt_scores=False, cached=0, ahead=False)
    assert nothing.gaps([]) == {}


def test_only_what_was_asked_for_is_an_error() -> None:
    forwarded, edited, scored = every = (Gap("forwarded", 3), Gap("edited", 1), Gap("scored", 2))
    assert asked_for(every, steered=True, probed=True) == every
    assert asked_for(every, steered=True, probed=False) == (forwarded, edited)
    assert asked_for(every, steered=False, probed=True) == (forwarded, scored)
    assert asked_for(every, steered=False, probed=False) == ()


def test_messages_say_what_is_missing() -> None:
    assert describe_gaps([]) == ""
    assert describe_gaps([Gap("edited", 3), Gap("scored", 1)]) == (
        "the engine edited 3 tokens too few: the response was not steered as asked; "
        "the engine scored 1 token too few: the response was not probed as asked"
    )
    assert describe_gaps([Gap("forwarded", 2)]).startswith("the engine reported 2 tokens too few: ")
