"""What the scheduler puts onto outputs of what it hears, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from engine_support.readings import take_readings

from pilothouse.core.messages import LIVE_KEY, StepCost, StepReadings, WirePlan, live_decoder
from pilothouse.engine.holdings import Held
from pilothouse.engine.listener import Listener
from pilothouse.engine.runs import GATHERED

COLUMNS, BATCH, PROMPT = 4, 9, 5
Told = list[tuple[str, int, list[float]]]


class Desk:
    """A listener, with requests by name: their client, their columns, and whether their readings may wait."""

    def __init__(self, requests: Mapping[str, tuple[int, tuple[int, ...], bool]]) -> None:
        self.names = list(requests)
        self.held: dict[str, Held] = {}
        self.requests: dict[str, Any] = {}
        for name, (client, columns, gather) in requests.items():
            plan = WirePlan(readouts=(b"r",) * len(columns), gather=gather)
            self.held[name] = Held(plan, (), b"", 0, columns, None)
            self.requests[name] = SimpleNamespace(request_id=name, client_index=client, num_tokens=0)
        self.listener = Listener(self.held, self.requests)
        self.outputs: dict[int, Any] = {}

    def step(self, advanced: int, silent: Sequence[str] = (), ended: Sequence[str] = ()) -> Told:
        """A step of all that were there at first, described where it is the first; silent: those without an output;
        ended: those whose last one it is. What was told: requests, positions and their readouts."""
        live: Mapping[int, Any] = {}
        if advanced == 0:
            ones = np.ones(len(self.names), dtype=np.int64)
            cost = StepCost(1, 1.0, 2.0)
            readings = StepReadings(self.names, PROMPT * ones, ones, ones > 0, ones, self.scores(0), cost, BATCH)
            self.listener.hear(readings, {})
        else:
            live = self.listener.hear_again((BATCH, advanced, self.scores(advanced).tobytes(), 1.0, 2.0))
        self.outputs = {}
        for name in [n for n in self.requests if n not in silent]:
            request = self.requests[name]
            request.num_tokens = PROMPT + advanced + 2
            output = SimpleNamespace(request_id=name, finish_reason=None, kv_transfer_params=None)
            if name in ended:
                output.finish_reason = "stop"
                self.listener.part_from(request, self.held.pop(name))
                del self.requests[name]
            self.outputs.setdefault(request.client_index, SimpleNamespace(outputs=[])).outputs.append(output)
        self.listener.pass_on(self.outputs, live)
        return sorted(self._told())

    def scores(self, advanced: int) -> Any:
        return 100.0 * advanced + np.arange(len(self.names) * COLUMNS, dtype=np.float32).reshape(-1, COLUMNS)

    def row(self, name: str, advanced: int, columns: Sequence[int]) -> tuple[str, int, list[float]]:
        """What is to be told of a request at a step."""
        return name, PROMPT + advanced, self.scores(advanced)[self.names.index(name), list(columns)].tolist()

    def _told(self) -> Iterator[tuple[str, int, list[float]]]:
        for output in [output for per_client in self.outputs.values() for output in per_client.outputs]:
            for name, reading in take_readings(output):
                n = sum(count for _, count, _ in reading.runs)
                assert [run[:2] for run in reading.runs] == list(reading.score_runs)
                rows = np.frombuffer(reading.scores, np.float32).reshape(n, -1).tolist()
                positions = [start + i for start, count in reading.score_runs for i in range(count)]
                assert reading.runs[0][2] == reading.runs[0][1], "all of them were edited"
                yield from ((name, at, row) for at, row in zip(positions, rows, strict=True))


def test_each_client_is_told_of_its_own_and_each_request_its_own_columns() -> None:
    columns = {"a": (0, 2), "b": (3, 1), "c": (0, 2), "d": (2,)}
    desk = Desk({name: (name == "c", these, False) for name, these in columns.items()})
    for advanced in range(4):
        assert desk.step(advanced) == [desk.row(name, advanced, these) for name, these in columns.items()]


def test_a_step_at_once_is_one_message_a_client_with_its_cost_said_once() -> None:
    desk = Desk({"a": (0, (0,), False), "b": (0, (0,), False), "c": (0, (1,), False)})
    desk.step(0)
    held = desk.listener.hear_again((BATCH, 1, desk.scores(1).tobytes(), 1.0, 2.0))
    outputs = [SimpleNamespace(request_id=n, finish_reason=None, kv_transfer_params={"theirs": 1}) for n in "abc"]
    desk.listener.pass_on({0: SimpleNamespace(outputs=outputs)}, held)
    assert [output.kv_transfer_params.keys() for output in outputs[1:]] == [{"theirs"}, {"theirs"}]
    assert outputs[0].kv_transfer_params["theirs"] == 1
    told = live_decoder.decode(outputs[0].kv_transfer_params[LIVE_KEY])
    assert [message.request_ids for message in told] == [("a", "b"), ("c",)]
    assert sum(message.cost.steps for message in told) == 1


def test_what_a_client_without_an_output_was_to_be_told_goes_with_the_next_one() -> None:
    desk = Desk({"a": (0, (0,), False), "b": (1, (1,), False)})
    desk.step(0)
    assert desk.step(1, silent=["b"]) == [desk.row("a", 1, (0,))]
    assert desk.step(2, silent=["b"]) == [desk.row("a", 2, (0,))]
    late = [desk.row("b", advanced, (1,)) for advanced in (1, 2, 3)]
    assert desk.step(3) == [desk.row("a", 3, (0,)), *late]
    assert desk.step(4) == [desk.row("a", 4, (0,)), desk.row("b", 4, (1,))]


def test_who_has_ended_is_told_of_its_last_step_and_of_none_behind_it() -> None:
    desk = Desk({"a": (0, (0,), False), "b": (0, (1,), False), "c": (0, (1,), True)})
    desk.step(0)
    assert desk.step(1, ended=["b"]) == [desk.row("a", 1, (0,)), desk.row("b", 1, (1,))]
    # A step that was under way still ran it.
    assert desk.step(2) == [desk.row("a", 2, (0,))]
    assert desk.step(3, ended=["c"]) == [desk.row("a", 3, (0,)), *(desk.row("c", n, (1,)) for n in range(4))]
    assert not desk.listener._buffers


def test_readings_that_may_wait_come_together_and_in_order_however_many_steps_there_are() -> None:
    desk = Desk({"a": (0, (0, 1), True), "b": (0, (2,), True)})
    told: Told = []
    for advanced in range(2 * GATHERED + 5):
        found = desk.step(advanced, ended=["a", "b"] if advanced == 2 * GATHERED + 4 else [])
        assert not found or {len(found)} <= {2 * GATHERED, 10}
        told += [entry for entry in found if entry[0] == "a"]
    assert told == [desk.row("a", advanced, (0, 1)) for advanced in range(2 * GATHERED + 5)]


def test_a_step_that_was_missed_leaves_a_hole_and_what_follows_is_told_right() -> None:
    desk = Desk({"a": (0, (0,), True)})
    desk.step(0)
    desk.step(1)
    desk.step(3)
    found = desk.step(4, ended=["a"])
    assert found == [desk.row("a", advanced, (0,)) for advanced in (0, 1, 3, 4)]
