"""Pairs of `pilothouse bench` without servers: their order, their prompts, how a run goes on, how long it takes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pilothouse.cli.bench import command, measure
from pilothouse.cli.bench.client import Answer, Burst
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.measure import (
    FITTED,
    PAIR,
    PROMPT,
    SINGLE,
    SINGLES,
    Deadline,
    fit_tokens,
    later_seconds,
    measure_pairs,
    measure_singles,
    singles_of,
    warm_up,
)
from pilothouse.cli.bench.rounds import SIDES, measure_rounds, prompts_of, variants_of
from pilothouse.cli.bench.scenarios import Comparison, Scenario, default_scenarios, full_scenarios
from pilothouse.cli.bench.servers import Server, all_stopped, alone
from pilothouse.cli.bench.shapes import HARBOR
from pilothouse.cli.bench.variants import (
    AGAIN,
    IDLE,
    ONE_VECTOR,
    PLAIN,
    PLAIN_STREAMED,
    STEERED,
    WIDE_STREAMED,
    Place,
    Requests,
    Variant,
)

COMPARISONS = (
    Comparison(AGAIN, PLAIN, 4),
    Comparison(STEERED, PLAIN, 4),
    Comparison(WIDE_STREAMED, PLAIN_STREAMED, 2),
)
SCENARIO = Scenario("harbor, batch 2", HARBOR, 2, 6, 3, COMPARISONS, singles=2)
REQUESTS = Requests("harbor", HARBOR.width, HARBOR.depth, 2)


class FakeServer(Server):
    """Notes in `stopped`, which it shares with others, whether it is stopped; its port is its number."""

    def __init__(self, place: Place, port: int, stopped: set[str]) -> None:
        self.place, self.port, self._stopped = place, port, stopped
        self._cpu = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._stopped.add(self.place)
        try:
            yield
        finally:
            self._stopped.remove(self.place)

    def cpu_seconds(self) -> float:
        self._cpu += 0.25
        return self._cpu


class FakeServers:
    """Servers that answer at once; `bursts` are the places that were asked, with what they were sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stopped: set[str] = set()
        places: tuple[Place, ...] = ("plain", "ours", "wide")
        self.servers: dict[Place, Server] = {
            place: FakeServer(place, port, self.stopped) for port, place in enumerate(places)
        }
        self.bursts: list[tuple[str, list[dict[str, Any]]]] = []
        self.breaks_after: int | None = None
        monkeypatch.setattr(measure, "send", self.send)

    async def send(self, port: int, bodies: list[bytes], path: str = "") -> tuple[float, list[Answer]]:
        place = next(p for p, server in self.servers.items() if server.port == port)
        assert self.stopped == set(self.servers) - {place}
        read = [json.loads(body) for body in bodies]
        if len(read[0]["prompt"]) == SCENARIO.tokens_in:
            if self.breaks_after is not None and len(self.bursts) == self.breaks_after:
                raise KeyboardInterrupt
            self.bursts.append((place, read))
        return 0.5 + 0.1 * read[0]["max_tokens"], [_answer(body) for body in read]


def _answer(body: dict[str, Any]) -> Answer:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}).encode()
    if not body.get("stream"):
        return Answer([1.0], [b"HTTP/1.1 200 OK\r\n\r\n" + usage])
    token = b'\ndata: {"choices":[{"text":"a"}]}\n'
    pieces = [b"HTTP/1.1 200 OK\r\n\r\n", *[token] * body["max_tokens"], b"\ndata: " + usage + b"\n"]
    return Answer([0.01 * i for i in range(len(pieces))], pieces)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakeServers:
    return FakeServers(monkeypatch)


async def pairs_of(fakes: FakeServers, journal: Journal, seed: int = 0) -> list[dict[str, Any]]:
    await measure_pairs(SCENARIO, fakes.servers, REQUESTS, SCENARIO.tokens_out, journal, seed)
    return journal.find(kind=PAIR)


async def test_every_comparison_is_measured_as_often_as_it_says(fakes: FakeServers) -> None:
    lines = await pairs_of(fakes, Journal())
    counts = {c.name: [x["number"] for x in lines if x["comparison"] == c.name] for c in COMPARISONS}
    assert counts == {c.name: list(range(c.pairs)) for c in COMPARISONS}
    wide = next(line for line in lines if line["comparison"] == WIDE_STREAMED.name)
    assert wide["variant"]["tokens"] == SCENARIO.batch * SCENARIO.tokens_out
    assert wide["variant"]["cpu_seconds"] == 0.25
    assert wide["variant"]["itl_p50_ms"] == pytest.approx(10.0)
    assert next(line for line in lines if line["comparison"] == STEERED.name)["variant"]["ttft_ms"] is None


async def test_a_round_measures_every_variant_once_and_its_comparisons_share_them(fakes: FakeServers) -> None:
    lines = await pairs_of(fakes, Journal())
    asked = [place for place, _ in fakes.bursts]
    rounds = [asked[0:5], asked[5:10], asked[10:13], asked[13:16]]
    assert len(asked) == 16
    assert all(sorted(found) == ["ours", "plain", "plain", "plain", "wide"] for found in rounds[:2])
    assert all(sorted(found) == ["ours", "plain", "plain"] for found in rounds[2:])
    for line in lines:
        comparison = next(c for c in COMPARISONS if c.name == line["comparison"])
        turns, places = line["turns"], rounds[line["number"]]
        sides = (places[turns["variant"]], places[turns["beside"]])
        assert sides == (comparison.variant.server, comparison.beside.server)
        assert line["first"] == ("variant" if turns["variant"] < turns["beside"] else "beside")
    by = {(line["comparison"], line["number"]): line for line in lines}
    assert all(by[AGAIN.name, n]["beside"] == by[STEERED.name, n]["beside"] for n in range(4))
    assert all(by[AGAIN.name, n]["turns"]["variant"] != by[AGAIN.name, n]["turns"]["beside"] for n in range(4))
    assert {line["first"] for line in lines} == {"variant", "beside"}
    assert len({tuple(found) for found in rounds[:2]}) == 2


async def test_no_prompt_is_in_the_cache_of_its_server(fakes: FakeServers) -> None:
    lines = await pairs_of(fakes, Journal())
    for place in fakes.servers:
        prompts = [tuple(body["prompt"]) for asked, bodies in fakes.bursts if asked == place for body in bodies]
        assert len(set(prompts)) == len(prompts)
    starts = (0, 5, 10, 13)
    for line in lines:
        mine, others = (
            [body["prompt"] for body in fakes.bursts[starts[line["number"]] + line["turns"][side]][1]] for side in SIDES
        )
        # Of one server both sides cannot have the same; of two they can.
        assert (mine == others) == (line["comparison"] != AGAIN.name)


@pytest.mark.parametrize(
    "scenario", [*default_scenarios("cpu", "x"), *full_scenarios("cpu", "x")], ids=lambda s: s.name
)
def test_no_server_gets_prompts_twice_in_a_round(scenario: Scenario) -> None:
    sets = prompts_of(scenario.comparisons)
    variants = variants_of(scenario.comparisons)
    assert len({(variant.server, sets[variant.name]) for variant in variants}) == len(variants)
    assert len(sets) == len(variants)


async def test_an_interrupted_run_goes_on_where_it_stopped(fakes: FakeServers, tmp_path: Path) -> None:
    whole = await pairs_of(fakes, Journal())
    order = [(place, bodies) for place, bodies in fakes.bursts]
    path = tmp_path / "scratch" / "run.jsonl"
    fakes.bursts, fakes.breaks_after = [], 7
    with pytest.raises(KeyboardInterrupt):
        await pairs_of(fakes, Journal(path))
    assert len(Journal(path).lines) == 3
    with path.open("a", encoding="utf-8") as file:
        file.write('{"scenario": "harbor, bat')
    fakes.bursts, fakes.breaks_after = [], None
    again = Journal(path)
    found = await pairs_of(fakes, again)
    assert [_key(line) for line in found] == [_key(line) for line in whole]
    # The round that was cut short is measured anew, so that no pair is of two starts of a server.
    assert fakes.bursts == order[5:]
    assert Journal(path).lines == found
    again.finish()
    assert not path.exists()


async def test_a_round_of_which_lines_are_missing_is_completed(fakes: FakeServers) -> None:
    journal = Journal()
    await pairs_of(fakes, journal)
    journal.lines = [line for line in journal.lines if (line["comparison"], line["number"]) != (STEERED.name, 1)]
    fakes.bursts = []
    await pairs_of(fakes, journal)
    assert sorted(place for place, _ in fakes.bursts) == ["ours", "plain"]
    assert len(journal.lines) == sum(c.pairs for c in COMPARISONS)


async def test_rounds_end_when_their_time_is_up_but_not_before_three() -> None:
    async def side(variant: Variant, salt: str) -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {}

    comparisons = (Comparison(STEERED, PLAIN, 6),)
    # A round is two bursts: more than one of them must find room.
    for left, expected in ((0.0, 3), (0.03, 3), (60.0, 6)):
        journal = Journal()
        await measure_rounds(PAIR, SCENARIO, comparisons, side, journal, 0, partial(float, left))
        assert [line["number"] for line in journal.lines] == list(range(expected))


async def test_a_variant_may_stand_beside_another_of_its_server(fakes: FakeServers) -> None:
    scenario = replace(SCENARIO, comparisons=(Comparison(STEERED, ONE_VECTOR, 3), Comparison(STEERED, IDLE, 3)))
    journal = Journal()
    await measure_pairs(scenario, fakes.servers, REQUESTS, 3, journal, seed=0)
    assert len(fakes.bursts) == 3 * 3
    carried = {STEERED.name: ["bench-0", "bench-1"], ONE_VECTOR.name: ["bench-0", "bench-0"], IDLE.name: []}
    for line in journal.lines:
        comparison = next(c for c in scenario.comparisons if c.name == line["comparison"])
        for side in SIDES:
            _, bodies = fakes.bursts[3 * line["number"] + line["turns"][side]]
            found = [entry["vector"] for body in bodies for entry in body.get("steering", [])]
            assert found == carried[getattr(comparison, side).name]


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["comparison"], line["number"], line["first"]


def test_other_parameters_have_a_journal_of_their_own(tmp_path: Path) -> None:
    one = Journal.of_parameters(tmp_path, {"seed": 0})
    one.add({"scenario": "s", "kind": "done"})
    assert Journal.of_parameters(tmp_path, {"seed": 0}).done(scenario="s", kind="done")
    assert not Journal.of_parameters(tmp_path, {"seed": 1}).lines


async def test_single_requests_come_one_at_a_time_and_share_those_to_plain_vllm(fakes: FakeServers) -> None:
    journal = Journal()
    await measure_singles(SCENARIO, fakes.servers, REQUESTS, journal, seed=0)
    lines = journal.find(kind=SINGLE)
    assert len(lines) == len(SINGLES) * SCENARIO.singles
    assert all(len(bodies) == 1 for _, bodies in fakes.bursts)
    # Plain vLLM, the same again, idle, registered, inline: each after one request that only wakes the server.
    assert len(fakes.bursts) == 5 * SCENARIO.singles * (1 + SCENARIO.in_turn)
    asked = [place for place, _ in fakes.bursts]
    assert asked.count("plain") == 2 * SCENARIO.singles * (1 + SCENARIO.in_turn)
    assert {line["variant"]["ttft_ms"] for line in lines} == {10.0}
    for place in ("plain", "ours"):
        prompts = [tuple(bodies[0]["prompt"]) for found, bodies in fakes.bursts if found == place]
        assert len(set(prompts)) == len(prompts)


async def test_a_measurement_is_the_median_of_requests_in_turn(
    fakes: FakeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([500.0, 1.0, 2.0, 90.0, 4.0] * 5)
    monkeypatch.setattr(measure, "measured", lambda *_: Burst(1.0, 1, ttft_ms=next(times)))
    # The first request of each only wakes the server and is not looked at.
    scenario = replace(SCENARIO, singles=1, in_turn=5)
    journal = Journal()
    await measure_singles(scenario, fakes.servers, REQUESTS, journal, seed=0)
    assert {line[side]["ttft_ms"] for line in journal.lines for side in SIDES} == {4.0}


def test_single_requests_ask_the_one_server_of_ours_that_there_is() -> None:
    wide = tuple(c for c in COMPARISONS if c.variant.server != "ours")
    for comparisons, place in ((COMPARISONS, "ours"), (wide, "wide")):
        found = singles_of(replace(SCENARIO, comparisons=comparisons))
        assert [c.name for c in found] == [c.name for c in SINGLES]
        assert {c.variant.server for c in found} == {"plain", place}
        assert {c.pairs for c in found} == {SCENARIO.singles}


async def test_the_warm_up_finds_what_prompts_and_tokens_take(fakes: FakeServers) -> None:
    prompt, step = await warm_up(SCENARIO, fakes.servers, REQUESTS, seed=0)
    assert (prompt, step) == pytest.approx((0.5, 0.1))
    # Every variant once, and plain vLLM twice more to be timed.
    assert sorted(place for place, _ in fakes.bursts) == ["ours", *["plain"] * 5, "wide"]


async def test_a_scenario_is_measured_whole_and_once(fakes: FakeServers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def layout_of(server: Server) -> dict[str, int]:
        return {"sites": 6}

    async def prompts(*given: Any) -> list[dict[str, Any]]:
        assert fakes.stopped == {"plain", "wide"}
        return [{"round": 0, "variant": "again", "seconds": 1.0}]

    monkeypatch.setattr(command, "layout_of", layout_of)
    monkeypatch.setattr(command, "measure_prompt_scores", prompts)
    journal = Journal()
    scenario = replace(SCENARIO, tokens_out=256, seconds=100.0, prompts=1)
    for _ in range(2):
        await command._measure(scenario, fakes.servers, journal, "cpu", Deadline(5.0), later=100.0, seed=0)
        kinds = [line["kind"] for line in journal.lines]
        assert [kinds.count(kind) for kind in (FITTED, PAIR, SINGLE, PROMPT)] == [1, 10, 2 * len(SINGLES), 1]
    (about,) = journal.find(kind=FITTED)
    # 16 bursts of 0.5 s and 0.1 s a token in 100 seconds.
    assert (about["wanted"], about["tokens_out"], about["rounds"]) == (256, 48, 4)
    assert about["layouts"] == {"ours": {"sites": 6}, "wide": {"sites": 6}}
    assert {len(bodies[0]["prompt"]) for _, bodies in fakes.bursts} == {SCENARIO.tokens_in}


def test_answers_are_made_shorter_where_the_time_would_not_do() -> None:
    scenario = replace(SCENARIO, tokens_out=256)
    bursts = 5 + 5 + 3 + 3
    assert fit_tokens(scenario, 1.0, 0.1, bursts * 27.0) == 256
    assert fit_tokens(scenario, 1.0, 0.1, bursts * 26.0) == 192
    assert fit_tokens(scenario, 1.0, 0.1, bursts * 8.0) == 64
    assert fit_tokens(scenario, 1.0, 0.1, 0.0) == 32
    assert fit_tokens(replace(SCENARIO, tokens_out=16), 1.0, 0.1, 0.0) == 16


def test_time_is_kept_for_what_comes_after_the_pairs() -> None:
    alone_seconds = later_seconds(SCENARIO, 1.0, 0.1)
    assert alone_seconds == pytest.approx(5 * 2 * (1 + 12) * 0.8)
    assert later_seconds(replace(SCENARIO, peers=True), 1.0, 0.1) >= alone_seconds + 60
    assert later_seconds(replace(SCENARIO, singles=0), 1.0, 0.1) == 0


def test_a_deadline_leaves_what_is_kept() -> None:
    assert Deadline(None).left(420.0, 1000.0) == 420.0
    assert Deadline(30.0).left(420.0, 900.0) == 420.0
    assert Deadline(10.0).left(420.0, 400.0) == pytest.approx(200.0, abs=5)
    assert Deadline(10.0).left(420.0, 4000.0) == 0.0
    assert Deadline(10.0).left(math.inf, 400.0) == pytest.approx(200.0, abs=5)
    assert Deadline(None).left(math.inf, 400.0) == math.inf


@pytest.mark.parametrize(("seconds", "expected"), [(100.0, 3), (None, 4)])
async def test_a_run_that_is_late_makes_three_rounds_unless_its_answers_are_as_long_as_asked(
    fakes: FakeServers, monkeypatch: pytest.MonkeyPatch, seconds: float | None, expected: int
) -> None:
    async def layout_of(server: Server) -> dict[str, int]:
        return {}

    monkeypatch.setattr(command, "layout_of", layout_of)
    journal = Journal()
    late = Deadline(0.0)
    await command._measure(replace(SCENARIO, seconds=seconds), fakes.servers, journal, "cpu", late, 0.0, seed=0)
    assert {line["number"] for line in journal.find(kind=PAIR)} == set(range(expected))


@pytest.mark.parametrize("place", ["plain", "ours", "wide"])
def test_every_server_but_the_one_that_is_asked_is_stopped(fakes: FakeServers, place: Place) -> None:
    with alone(fakes.servers, place) as server:
        assert server is fakes.servers[place]
        assert fakes.stopped == set(fakes.servers) - {place}
    with all_stopped(fakes.servers):
        assert fakes.stopped == set(fakes.servers)
    assert not fakes.stopped


def test_a_comparison_is_named_for_what_stands_beside_it() -> None:
    assert Comparison(IDLE, PLAIN, 1).name == "idle"
    assert Comparison(STEERED, IDLE, 1).name == "all steered, all distinct / idle"
