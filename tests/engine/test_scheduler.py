"""The scheduler with slots over vLLM's two schedulers, with a worker that computes nothing.

On the CPU vLLM runs one step at a time, so nothing else exercises what running ahead brings: outputs that come after
their request is gone or was put back, places given to another plan while a step is in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_support.fake_checks import check_idle, check_result
from engine_support.fake_model import chained, edit, gate, make_ask, probe
from engine_support.fake_worker import MODES, FakeEngine, Mode, save_config
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.core.config import EngineLayout
from pilothouse.core.edits import PositionRange
from pilothouse.core.gaps import find_gaps
from pilothouse.core.plans import Plan
from pilothouse.engine import scheduler as scheduler_module
from pilothouse.engine.runs import GATHERED

ONE_PLAN = EngineLayout(rows=1, rows_per_plan=1, chains=1, chain_steps=1, readouts=1)


# More content than three rows and three columns hold; some plans share rows at other positions, some share columns.
PLANS = (
    Plan(),
    Plan((edit(1, "all"),)),
    Plan((edit(1, "generation"),), (probe(11),)),
    Plan((edit(2, "prompt"), edit(3, PositionRange(2, 6))), (probe(11), probe(12, (1,)))),
    Plan((edit(4, "last_prompt"),), (probe(13),), prompt_scores=True),
    Plan((), (probe(11), probe(12, (1,)), probe(13)), prompt_scores=True),
    Plan((edit(1, "all", strength=0.0),), (probe(14), probe(14))),
    Plan((chained(1, "all"),)),
    Plan((edit(1, "all"), chained(2, "generation", preserve_norm=True), chained(3, PositionRange(2, 6)))),
    Plan((chained(1, "all", gate=gate(11, 0.5)),), (probe(11),)),
    Plan((chained(1, "generation", gate=gate(13, 0.5)),), (probe(12, (1,)), probe(13)), prompt_scores=True),
    Plan((chained(4, "all", gate=gate(11, 0.05, "rest")), chained(2, "prompt")), (probe(11),)),
    Plan((edit(2, "all", gate=gate(13, 0.1, stops=True)),), (probe(13),), prompt_scores=True),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_config(tmp_path_factory.mktemp("config"))


OTHER = Plan((edit(2, "all"),))
LENGTH = 12

each_mode = pytest.mark.parametrize("mode", MODES)
ahead = pytest.mark.parametrize("mode", MODES[1:])


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The scheduler's own audit makes good what it finds, and says so: whatever it finds is a failure here."""
    yield
    ours = [r.getMessage() for r in caplog.get_records("call") if r.name.startswith("pilothouse")]
    assert not ours


arrivals: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    plan=st.sampled_from(PLANS),
    n_prompt=st.integers(1, 20),
    max_tokens=st.integers(1, 10),
    stop_at=st.none() | st.integers(0, 9),
    fork=st.integers(0, 2),
    gather=st.booleans(),
)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), arrivals),
        st.tuples(st.just("arrive"), arrivals),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("abort during step"), st.integers(0, 30)),
        st.tuples(st.just("reset"), st.none()),
    ),
    min_size=25,
    max_size=60,
)
limits = st.fixed_dictionaries(
    {
        "blocks": st.integers(9, 16),
        "max_num_seqs": st.integers(2, 5),
        "max_num_batched_tokens": st.integers(5, 24),
        "long_prefill_token_threshold": st.sampled_from([0, 3, 7]),
    }
)


def play(engine: FakeEngine, sequence: list[tuple[str, Any]]) -> bool:
    """Carry out the moves and run dry; whether output was dropped on the way."""
    reset = False
    for kind, what in sequence:
        names = list(engine.asks)
        match kind:
            case "arrive":
                engine.submit(make_ask(f"r{len(names)}", **what))
            case "step":
                for _ in range(what):
                    engine.step()
            case "abort" if names:
                engine.abort([names[what % len(names)]])
            case "abort during step" if names:
                engine.step(abort=[names[what % len(names)]])
            case "reset":
                # Puts every running request back and drops the outputs in flight.
                engine.scheduler.reset_prefix_cache(reset_running_requests=True)
                reset = True
    engine.drain()
    return reset


def check_run(engine: FakeEngine, sequence: list[tuple[str, Any]]) -> None:
    overran = play(engine, sequence)
    for name, how in engine.ended.items():
        if how != "abort":
            check_result(engine, name, overran)
    assert set(engine.ended) == set(engine.asks)
    check_idle(engine)


@each_mode
def test_whatever_happens_every_score_and_every_row_is_the_requests_own(model: Path, mode: Mode) -> None:
    seen = Counter[str]()

    @settings(max_examples=80, deadline=None)
    @given(moves, limits, st.integers(0, 1000))
    def run(sequence: list[tuple[str, Any]], tight: dict[str, Any], seed: int) -> None:
        engine = FakeEngine(model, mode, seed=seed, **tight)
        check_run(engine, sequence)
        seen.update(engine.seen)

    run()
    expected = {"preempted", "cached", "refused", "cut prompts", "late ends"} | ({"stale"} if mode != "sync" else set())
    assert expected <= {what for what, times in seen.items() if times}, "the runs were too tame to tell anything"


@each_mode
def test_a_request_without_a_plan_passes_those_that_wait_for_a_row(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode, ONE_PLAN)
    engine.submit(make_ask("holder", PLANS[1], max_tokens=30))
    waiting = [f"waits{i}" for i in range(5)]
    for name in waiting:
        engine.submit(make_ask(name, OTHER))
    for _ in range(4):
        engine.step()
    engine.submit(make_ask("plain", Plan(), n_prompt=3))
    engine.step()
    assert set(engine.worker.forwarded[-1]) == {"holder", "plain"}
    assert set(engine.scheduler._refused) == set(waiting)
    engine.drain()
    for name in engine.asks:
        check_result(engine, name)
    check_idle(engine)


def steps_until_served(engine: FakeEngine, popular: Plan, rare: Plan, limit: int) -> int | None:
    """How long a request for `rare` waits while requests of LENGTH tokens for `popular` overlap without a pause."""
    for step in range(limit):
        if step % (LENGTH // 2) == 0:
            engine.submit(make_ask(f"popular{step}", popular, max_tokens=LENGTH))
        if step == LENGTH:
            engine.submit(make_ask("rare", rare))
        engine.step()
        if "rare" in engine.worker.forwarded[-1]:
            return step - LENGTH
    return None


scarce = pytest.mark.parametrize(
    ("popular", "rare"),
    [
        (PLANS[1], OTHER),
        (Plan((chained(1, "all"),)), Plan((chained(2, "all"),))),
        (Plan((), (probe(11),)), Plan((), (probe(12),))),
    ],
    ids=["rows", "chains", "columns"],
)


@each_mode
@scarce
def test_a_rare_plan_is_served_in_spite_of_a_popular_one(model: Path, mode: Mode, popular: Plan, rare: Plan) -> None:
    patience = scheduler_module.PATIENCE
    engine = FakeEngine(model, mode, ONE_PLAN)
    waited = steps_until_served(engine, popular, rare, limit=2 * patience)
    # An output that comes a step later, and the step that finds the place free.
    assert waited is not None
    assert patience <= waited <= patience + LENGTH + 2
    engine.drain()
    for name in engine.asks:
        check_result(engine, name)
    check_idle(engine)


@scarce
def test_without_ageing_a_rare_plan_would_wait_for_ever(
    model: Path, monkeypatch: pytest.MonkeyPatch, popular: Plan, rare: Plan
) -> None:
    patience = scheduler_module.PATIENCE
    monkeypatch.setattr(scheduler_module, "PATIENCE", 10**9)
    assert steps_until_served(FakeEngine(model, "sync", ONE_PLAN), popular, rare, limit=2 * patience) is None


@each_mode
def test_who_waits_long_for_a_row_holds_up_nobody_who_only_reads(
    model: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "PATIENCE", 5)
    engine = FakeEngine(model, mode, ONE_PLAN)
    engine.submit(make_ask("holder", PLANS[1], max_tokens=30))
    engine.submit(make_ask("waits", OTHER))
    for _ in range(10):
        engine.step()
    engine.submit(make_ask("joins", PLANS[1]))
    engine.submit(make_ask("reads", Plan((), (probe(11),))))
    engine.step()
    assert set(engine.worker.forwarded[-1]) == {"holder", "reads"}
    engine.drain()
    check_idle(engine)


def step_until(engine: FakeEngine, reached: Callable[[], object]) -> None:
    for _ in range(200):
        if reached():
            return
        engine.step()
    raise AssertionError("never came to it")


def leave_in_every_way(engine: FakeEngine, turn: int) -> None:
    """Ten requests that end each in its own way; two of them outgrow the cache together."""
    lost = Plan((edit(100 + turn, "all"),))
    engine.submit(make_ask(f"stop{turn}", PLANS[2], max_tokens=8, stop_at=3))
    engine.submit(make_ask(f"length{turn}", PLANS[4], max_tokens=5))
    engine.submit(make_ask(f"waits{turn}", PLANS[3]))
    engine.submit(make_ask(f"missing{turn}", lost), lost=True)
    engine.submit(make_ask(f"missing and gone{turn}", Plan((edit(200 + turn, "all"),))), lost=True)
    engine.abort([f"missing and gone{turn}"])
    engine.step()
    assert f"waits{turn}" in engine.scheduler._refused
    engine.abort([f"waits{turn}"])
    engine.drain()
    for name in ("runs", "runs during step"):
        engine.submit(make_ask(f"{name}{turn}", PLANS[3], max_tokens=10))
    step_until(engine, lambda: engine.tracks[f"runs{turn}"].token_ids)
    engine.abort([f"runs{turn}"])
    engine.step(abort=[f"runs during step{turn}"])
    for name in ("grows", "grows too"):
        engine.submit(make_ask(f"{name}{turn}", PLANS[1], n_prompt=12, max_tokens=20, fork=turn))
    step_until(engine, engine.preempted)
    engine.abort(engine.preempted())
    engine.submit(make_ask(f"one{turn}", PLANS[6], max_tokens=1))
    engine.drain()


@each_mode
def test_however_requests_leave_nothing_of_them_stays(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode, blocks=10)
    for turn in range(3):
        leave_in_every_way(engine, turn)
    ends = Counter(name[:-1] + ": " + how for name, how in engine.ended.items())
    gone = ("waits", "missing and gone", "runs", "runs during step", "grows too")
    length = ("length", "grows", "one")
    assert ends == Counter(
        {"stop: stop": 3, "missing: error": 3} | {f"{n}: abort": 3 for n in gone} | {f"{n}: length": 3 for n in length}
    )
    for name, how in engine.ended.items():
        if how in ("stop", "length"):
            check_result(engine, name)
        else:
            assert how == "abort" or not engine.tracks[name].count_forwarded(0, 100)
    check_idle(engine)


@ahead
def test_no_step_runs_behind_a_limit_that_is_known(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode)
    engine.submit(make_ask("a", PLANS[2], n_prompt=6, max_tokens=5))
    engine.drain()
    assert [step["a"] for step in engine.worker.forwarded] == [range(6), *(range(p, p + 1) for p in range(6, 10))]
    check_result(engine, "a")


@ahead
def test_what_runs_behind_a_stop_token_is_not_reported(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode)
    engine.submit(make_ask("a", PLANS[2], n_prompt=6, max_tokens=9, stop_at=2))
    engine.submit(make_ask("b", PLANS[2], n_prompt=7, max_tokens=9))
    engine.drain()
    assert engine.ended == {"a": "stop", "b": "length"}
    assert any(8 in step.get("a", ()) for step in engine.worker.forwarded), "nothing ran ahead"
    for name in engine.asks:
        check_result(engine, name)
    check_idle(engine)


@ahead
def test_a_request_given_up_with_two_steps_in_flight_is_heard_of_no_more(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode)
    for name in ("a", "b"):
        engine.submit(make_ask(name, PLANS[2], max_tokens=9))
    step_until(engine, lambda: engine.tracks["a"].token_ids)
    received = engine.tracks["a"].count_forwarded(0, 100)
    engine.step(abort=["a"])
    assert engine.seen["late ends"] == 2
    assert engine.scheduler.pilothouse_rows.held == 1
    engine.drain()
    assert engine.tracks["a"].count_forwarded(0, 100) == received
    check_result(engine, "b")
    check_idle(engine)


@ahead
def test_the_readings_of_a_request_put_back_in_flight_are_kept(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode, blocks=9)
    for name, plan in (("a", PLANS[2]), ("b", PLANS[3])):
        engine.submit(make_ask(name, plan, n_prompt=11, max_tokens=15, fork=len(engine.asks)))
    before = dict[str, int]()
    while not engine.seen["stale"]:
        before = {name: track.count_forwarded(0, 100) for name, track in engine.tracks.items()}
        engine.step()
    (back,) = engine.preempted()
    assert engine.tracks[back].count_forwarded(0, 100) == before[back] + 1
    assert engine.scheduler.pilothouse_rows.held == 3, "who was put back keeps its rows"
    engine.drain()
    for name in engine.asks:
        check_result(engine, name)
    check_idle(engine)


@ahead
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_a_row_goes_to_another_plan_right_behind_the_last_step_of_its_holder(model: Path, mode: Mode, how: str) -> None:
    engine = FakeEngine(model, mode, ONE_PLAN)
    engine.submit(make_ask("a", PLANS[2], max_tokens=9, stop_at=4 if how == "stop" else None))
    engine.submit(make_ask("b", Plan((edit(5, "all"),), (probe(12),))))
    step_until(engine, lambda: len(engine.tracks["a"].token_ids) == 4)
    engine.step(abort=["a"] if how == "abort" else [])
    assert engine.ended["a"] == how
    assert "a" in engine.worker.forwarded[-1], "the step behind its last one is not in flight"
    engine.step()
    assert set(engine.worker.forwarded[-1]) == {"b"}
    engine.drain()
    check_result(engine, "b")
    check_idle(engine)


@each_mode
def test_readings_of_a_request_that_ends_before_its_first_output_are_dropped(model: Path, mode: Mode) -> None:
    engine = FakeEngine(model, mode, long_prefill_token_threshold=3)
    for name in ("a", "b", "c"):
        engine.submit(make_ask(name, PLANS[4], n_prompt=18))
    step_until(engine, lambda: "a" in engine.scheduler._listener._buffers)
    engine.abort(["a"])
    engine.step()
    assert set(engine.scheduler._listener._buffers) == {"b", "c"}
    engine.drain()
    check_result(engine, "b")
    check_idle(engine)


@each_mode
def test_who_goes_on_behind_what_others_cached_has_its_prompt_scores(model: Path, mode: Mode) -> None:
    # Two read the same prompt; one is put back amid it and goes on behind the blocks that the other has filled.
    engine = FakeEngine(model, mode, blocks=9, long_prefill_token_threshold=3)
    engine.submit(make_ask("grows", Plan(), n_prompt=11, max_tokens=16, fork=1))
    for _ in range(2):
        engine.step()
    for name in ("first", "behind"):
        engine.submit(make_ask(name, PLANS[5], n_prompt=18, fork=2))
    engine.drain()
    assert engine.seen["preempted"]
    for name in engine.asks:
        check_result(engine, name)
    check_idle(engine)


@each_mode
@pytest.mark.parametrize("gather", [False, True])
def test_readings_that_nobody_waits_for_travel_together(model: Path, mode: Mode, gather: bool) -> None:
    engine = FakeEngine(model, mode)
    engine.submit(make_ask("a", PLANS[2], max_tokens=GATHERED + 8, gather=gather))
    engine.drain()
    check_result(engine, "a")
    check_idle(engine)
    assert engine.seen["readings"] == (2 if gather else GATHERED + 8)


def test_readings_of_a_batch_that_nobody_described_are_a_gap_and_nobody_elses(model: Path) -> None:
    engine = FakeEngine(model, "sync")
    engine.submit(make_ask("a", PLANS[2], max_tokens=9))
    step_until(engine, lambda: len(engine.tracks["a"].token_ids) == 4)
    engine.scheduler._listener._run = None
    engine.drain()
    ask, track = engine.asks["a"], engine.tracks["a"]
    track.finish_reason = "length"
    assert {gap.kind for gap in find_gaps(ask.plan, ask.spans, track)} == {"forwarded"}


def test_a_name_used_again_inherits_no_readings(model: Path) -> None:
    engine = FakeEngine(model, "sync", long_prefill_token_threshold=3)
    for name in ("a", "b"):
        engine.submit(make_ask(name, PLANS[5], n_prompt=18))
    step_until(engine, lambda: "a" in engine.scheduler._listener._buffers)
    engine.abort(["a"])
    engine.worker.forwarded.clear()
    engine.submit(make_ask("a", Plan((), (probe(14),)), n_prompt=6, fork=1))
    engine.drain()
    check_result(engine, "a")
    check_idle(engine)
