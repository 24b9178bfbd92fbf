"""Pairs of `pilothouse bench` without servers: their order, their prompts, how a run goes on, how long it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilothouse.cli.bench import command, measure
from pilothouse.cli.bench.client import Answer
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.measure import (
    FITTED,
    N_IN_TURN,
    PAIR,
    PROMPT,
    SINGLE,
    SINGLES,
    Deadline,
    fit_tokens,
    later_seconds,
    measure_pairs,
    measure_singles,
    warm_up,
)
from pilothouse.cli.bench.scenarios import Comparison, Scenario
from pilothouse.cli.bench.servers import Server, all_stopped, alone
from pilothouse.cli.bench.shapes import HARBOR
from pilothouse.cli.bench.variants import (
    AGAIN,
    IDLE,
    PLAIN,
    PLAIN_STREAMED,
    STEERED,
    WIDE_STREAMED,
    Place,
    Requests,
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


async def test_the_sides_of_a_pair_follow_one_another_and_either_comes_first(fakes: FakeServers) -> None:
    lines = await pairs_of(fakes, Journal())
    asked = [place for place, _ in fakes.bursts]
    assert len(asked) == 2 * len(lines)
    for number, line in enumerate(lines):
        comparison = next(c for c in COMPARISONS if c.name == line["comparison"])
        sides = [comparison.variant.server, comparison.beside.server]
        expected = sides if line["first"] == "variant" else sides[::-1]
        assert asked[2 * number : 2 * number + 2] == expected
    assert {line["first"] for line in lines} == {"variant", "beside"}
    orders = [[x["comparison"] for x in lines if x["number"] == number] for number in range(4)]
    assert len({tuple(order) for order in orders}) > 1


async def test_no_prompt_is_in_the_cache_of_its_server(fakes: FakeServers) -> None:
    lines = await pairs_of(fakes, Journal())
    for place in fakes.servers:
        prompts = [tuple(body["prompt"]) for asked, bodies in fakes.bursts if asked == place for body in bodies]
        assert len(set(prompts)) == len(prompts)
    for number, line in enumerate(lines):
        first, second = ([body["prompt"] for body in bodies] for _, bodies in fakes.bursts[2 * number : 2 * number + 2])
        assert (first == second) == (line["comparison"] != AGAIN.name)


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
    assert fakes.bursts == order[6:]
    assert Journal(path).lines == found
    again.finish()
    assert not path.exists()


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["comparison"], line["number"], line["first"]


def test_other_parameters_have_a_journal_of_their_own(tmp_path: Path) -> None:
    one = Journal.of_parameters(tmp_path, {"seed": 0})
    one.add({"scenario": "s", "kind": "done"})
    assert Journal.of_parameters(tmp_path, {"seed": 0}).done(scenario="s", kind="done")
    assert not Journal.of_parameters(tmp_path, {"seed": 1}).lines


async def test_single_requests_come_one_at_a_time(fakes: FakeServers) -> None:
    journal = Journal()
    await measure_singles(SCENARIO, fakes.servers, REQUESTS, journal, seed=0)
    lines = journal.find(kind=SINGLE)
    assert len(lines) == len(SINGLES) * SCENARIO.singles
    assert all(len(bodies) == 1 for _, bodies in fakes.bursts)
    assert len(fakes.bursts) == 2 * len(lines) * (1 + N_IN_TURN)
    assert {line["variant"]["ttft_ms"] for line in lines} == {10.0}


async def test_the_warm_up_finds_what_prompts_and_tokens_take(fakes: FakeServers) -> None:
    prompt, step = await warm_up(SCENARIO, fakes.servers, REQUESTS, seed=0)
    assert (prompt, step) == pytest.approx((0.5, 0.1))
    assert {place for place, _ in fakes.bursts} == {"plain", "ours", "wide"}


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
    # 20 bursts of 0.5 s and 0.1 s a token in 100 seconds.
    assert (about["wanted"], about["tokens_out"]) == (256, 32)
    assert about["layouts"] == {"ours": {"sites": 6}, "wide": {"sites": 6}}
    assert {len(bodies[0]["prompt"]) for _, bodies in fakes.bursts} == {SCENARIO.tokens_in}


def test_answers_are_made_shorter_where_the_time_would_not_do() -> None:
    scenario = replace(SCENARIO, tokens_out=256)
    bursts = 2 * (4 + 4 + 2)
    assert fit_tokens(scenario, 1.0, 0.1, bursts * 27.0) == 256
    assert fit_tokens(scenario, 1.0, 0.1, bursts * 26.0) == 192
    assert fit_tokens(scenario, 1.0, 0.1, bursts * 8.0) == 64
    assert fit_tokens(scenario, 1.0, 0.1, 0.0) == 32
    assert fit_tokens(replace(SCENARIO, tokens_out=16), 1.0, 0.1, 0.0) == 16


def test_time_is_kept_for_what_comes_after_the_pairs() -> None:
    alone_seconds = later_seconds(SCENARIO, 1.0, 0.1)
    assert alone_seconds == pytest.approx(2 * len(SINGLES) * 2 * (1 + N_IN_TURN) * 0.8)
    assert later_seconds(replace(SCENARIO, peers=True), 1.0, 0.1) > alone_seconds + 60
    assert later_seconds(replace(SCENARIO, singles=0), 1.0, 0.1) == 0


def test_a_deadline_leaves_what_is_kept() -> None:
    assert Deadline(None).left(420.0, 1000.0) == 420.0
    assert Deadline(30.0).left(420.0, 900.0) == 420.0
    assert Deadline(10.0).left(420.0, 400.0) == pytest.approx(200.0, abs=5)
    assert Deadline(10.0).left(420.0, 4000.0) == 0.0


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


def test_a_server_is_interrupted_once(tmp_path: Path) -> None:
    count = "import signal, sys, time; n = []; signal.signal(signal.SIGINT, lambda *_: n.append(1)); "
    count += f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(0.5); sys.exit(10 + len(n))"
    server = Server(["-c", count])
    with server:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        server.interrupt()
    assert server._process is not None
    assert server._process.returncode == 11


def test_processor_time_is_that_of_the_whole_tree() -> None:
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    server = Server([])
    server._process = subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while server.cpu_seconds() < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        used = server.cpu_seconds()
        with server.paused():
            time.sleep(0.1)
            stopped = server.cpu_seconds()
            time.sleep(0.3)
            assert server.cpu_seconds() == pytest.approx(stopped, abs=0.02)
        assert stopped >= used
    finally:
        os.killpg(server._process.pid, signal.SIGKILL)
        server._process.wait()
