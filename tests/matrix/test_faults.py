"""What dies under a server, or leaves it: clients are told, the server says why, nothing stays behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from engine_support.harness import Reference
from serve_support.faults import LONG, Aftermath, Stream, kill, plain_serving, plain_stream, stream
from serve_support.server import Server, serving
from serve_support.swaps import HEADERS
from serve_support.topologies import Answer, ask, counted

from pilothouse.harbor.paths import model_dir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

ROWS = 8
N_STREAMS = 3
LABEL = '{model_name="harbor",vector="adhoc"}'


@dataclass(frozen=True)
class Death:
    """Who dies, by what vLLM calls it; options: of the server; said: by vLLM, in its log."""

    title: str
    options: tuple[str, ...]
    said: str


DEATHS = {
    "worker killed": Death("VLLM::Worker", (), "died unexpectedly"),
    "engine core killed": Death("VLLM::EngineCore", (), "EngineDeadError: EngineCore encountered an issue"),
    "API server killed": Death("VLLM::APIServer_1", ("--api-server-count", "2"), "Process ApiServer_1"),
}
LEAVING = "client drops the stream"


@pytest.fixture(scope="module", params=DEATHS)
def death(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def aftermath(death: str, tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    dies = DEATHS[death]
    with serving(tmp_path_factory.mktemp("death"), "--enforce-eager", *dies.options) as server:
        return kill(server, dies.title, partial(stream, server), N_STREAMS)


@pytest.fixture(scope="module")
def stock(death: str, tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    """The same death of stock vLLM."""
    dies = DEATHS[death]
    with plain_serving(tmp_path_factory.mktemp("stock"), "--enforce-eager", *dies.options) as server:
        return kill(server, dies.title, partial(plain_stream, server), N_STREAMS)


@pytest.mark.cell("faults", "{death}", "clients")
def test_clients_get_an_error_event_or_a_closed_stream(death: str, aftermath: Aftermath) -> None:
    for each in aftermath.streams:
        assert each.ending in ("error event", "closed")
        assert each.error or each.ending == "closed"
        # What came before was right as far as it went: steered, scored, and nothing that says it were whole.
        assert all(choice["finish_reason"] is None for chunk in each.chunks for choice in chunk["choices"])
        assert any("probe_scores" in choice for chunk in each.chunks for choice in chunk["choices"])


@pytest.mark.cell("faults", "{death}", "server")
def test_the_server_says_why_and_ends_as_vllm_does(death: str, aftermath: Aftermath, stock: Aftermath) -> None:
    said = DEATHS[death].said
    assert said in stock.log, "what vLLM says"
    assert said in aftermath.log
    assert (aftermath.status == 0) == (stock.status == 0)
    if DEATHS[death].options:
        # The kernel chooses to which API server a stream goes; those of the dead one are closed, the others told.
        assert aftermath.endings | stock.endings <= {"closed", "error event"}
    else:
        assert aftermath.endings == stock.endings


@pytest.mark.cell("faults", "{death}", "counters")
def test_counters_of_a_server_that_is_gone(death: str, aftermath: Aftermath) -> None:
    pytest.skip(_gone(death, aftermath))


@pytest.mark.cell("faults", "{death}", "slots")
def test_slots_of_a_server_that_is_gone(death: str, aftermath: Aftermath) -> None:
    pytest.skip(_gone(death, aftermath))


def _gone(death: str, aftermath: Aftermath) -> str:
    """That the server ends, in vLLM's words, without what differs from run to run."""
    assert DEATHS[death].said in aftermath.log
    return f"vLLM ends the server: {DEATHS[death].said}"


@dataclass
class Left:
    """A server that clients left, and those that stayed."""

    server: Server
    left: list[Stream]
    stayed: list[Stream]
    later: list[Answer]
    before: dict[str, float]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("left"), "--enforce-eager", "--max-plans", str(ROWS // 2)) as running:
        yield running


@pytest.fixture(scope="module")
def left(server: Server) -> Left:
    before = _counters(server)
    stayed = [stream(server, number) for number in range(ROWS - 2)]
    for each in stayed:
        assert each.begun.wait(120)
    leavers = []
    for number in range(2):
        leavers.append(stream(server, ROWS + number))
        assert leavers[-1].begun.wait(120)
        # At once: on a fast machine a stream that is under way is soon over.
        leavers[-1].drop()
        assert leavers[-1].ending != "done"
    for each in stayed:
        each.wait()
    _wait_until(lambda: not counted(server, "vllm:num_requests_running"))
    later = [ask(server, 3 * number + 1) for number in range(100, 100 + 2 * ROWS)]
    return Left(server, leavers, stayed, later, before)


@pytest.mark.cell("faults", LEAVING, "clients")
def test_those_who_stay_get_all_of_their_streams(left: Left) -> None:
    for each in left.stayed:
        assert (each.ending, each.last["finish_reason"]) == ("done", "length")
        assert each.n_tokens == each.body["max_tokens"] == each.last["steering"][0]["tokens_edited"]
    assert all(each.n_tokens for each in left.left)


@pytest.mark.cell("faults", LEAVING, "server")
def test_the_server_serves_on_as_before(left: Left) -> None:
    reference = Reference(model_dir())
    for answer in left.later:
        prompt, generated = answer.choice["prompt_token_ids"], answer.choice["token_ids"]
        table, _ = reference.run(prompt, generated, answer.plan)
        expected = [table[i, token] for i, token in enumerate(generated)]
        np.testing.assert_allclose(answer.choice["logprobs"]["token_logprobs"], expected, atol=5e-4)
    assert "Traceback" not in left.server.log.read_text(errors="replace")


@pytest.mark.cell("faults", LEAVING, "counters")
def test_counters_agree_with_what_was_delivered(left: Left) -> None:
    found = {name: value - left.before.get(name, 0) for name, value in _counters(left.server).items()}
    whole = len(left.stayed) + len(left.later)
    assert found["steered"] == whole + len(left.left)
    # One who left in the middle is scored by what was read until then.
    assert found["scored"] == whole + len(left.left)
    assert not found["aborted"]
    delivered = sum(each.n_tokens for each in left.stayed) + sum(len(a.choice["token_ids"]) for a in left.later)
    # The engine is ahead of a client that leaves; what it did until it noticed stands in the record.
    dropped = [_edited(left.server, each) for each in left.left]
    assert found["edited"] == delivered + sum(dropped)
    assert all(each.n_tokens <= n <= LONG for each, n in zip(left.left, dropped, strict=True))


@pytest.mark.cell("faults", LEAVING, "slots")
def test_slots_come_back(left: Left) -> None:
    assert len(left.later) == 2 * ROWS
    # Together, in all the slots that there are.
    again = [stream(left.server, 200 + number, max_tokens=40) for number in range(ROWS)]
    for each in again:
        each.wait()
        assert each.ending == "done"
    _wait_until(lambda: not counted(left.server, "vllm:num_requests_running"))
    assert "Slots are not as they should be" not in left.server.log.read_text(errors="replace")


def _edited(server: Server, left: Stream) -> int:
    """How many tokens were edited of a stream that its client left."""
    record = server.get(f"/v1/probes/results/{left.chunks[0]['id']}", headers=HEADERS)
    assert record.status_code == 200, record.text
    (choice,) = record.json()["choices"]
    return int(choice["steering"][0]["tokens_edited"])


def _counters(server: Server) -> dict[str, float]:
    """What was counted so far, by short names."""
    found = {
        "steered": counted(server, "pilothouse_steering_requests_total").get(LABEL, 0),
        "edited": counted(server, "pilothouse_steering_tokens_total").get(LABEL, 0),
        "scored": sum(counted(server, "pilothouse_probe_requests_total").values()),
    }
    unscored = counted(server, "pilothouse_probe_unscored_total")
    found["aborted"] = sum(value for labels, value in unscored.items() if 'reason="aborted"' in labels)
    assert set(unscored) == {labels for labels in unscored if 'reason="aborted"' in labels}
    return found


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
