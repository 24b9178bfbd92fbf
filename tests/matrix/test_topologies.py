"""A server of several engines, or of several API servers, answers as one does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from engine_support.harness import Reference
from serve_support.server import Server, serving
from serve_support.swaps import HEADERS, NAME, PATHS, Checker, Swaps, vector_file
from serve_support.topologies import Traffic, ask, counted

from pilothouse.harbor.paths import model_dir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

N_REQUESTS = 24
N_SWAPS = 10
ROWS = 8
PASSING = "passing"
"""A name as long as the one that it takes the place of in a file whose header has a length."""
CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""Each engine has a core of its own: vLLM binds them by itself only where there are several memory nodes."""


@dataclass(frozen=True)
class Way:
    """How a server is made of processes."""

    ranks: int
    api_servers: int

    def options(self) -> list[str]:
        return ["--data-parallel-size", str(self.ranks), "--api-server-count", str(self.api_servers)]


WAYS = {"data parallel 2": Way(2, 1), "two API servers": Way(1, 2), "data parallel 2, two API servers": Way(2, 2)}


@dataclass
class Running:
    """A server, and what it has answered: to many at once, and to those who used names while they were rebound."""

    way: Way
    server: Server
    traffic: Traffic
    swaps: Swaps


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The embedded model in Hugging Face."""
    return Reference(model_dir())


@pytest.fixture(scope="module")
def running(way: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    shape = WAYS[way]
    options = ["--enforce-eager", "--max-plans", str(ROWS // 2), *shape.options()]
    variables = CORES if shape.ranks > 1 else {}
    with serving(tmp_path_factory.mktemp("topology"), *options, **variables) as server:
        traffic, swaps = Traffic(), Swaps(server.url)
        traffic.make(server, N_REQUESTS, shape.ranks)
        asyncio.run(swaps.run(N_SWAPS))
        yield Running(shape, server, traffic, swaps)


@pytest.mark.cell("ways", "{way}", "readouts")
def test_readouts_are_the_references_wherever_they_were_taken(running: Running, reference: Reference) -> None:
    for number, answer in enumerate(running.traffic.answers):
        _, logits = running.traffic.expected(number, reference)
        measured = [entry["logit"] for entry in answer.choice["probes"]["truthfulness"]["tokens"][:-1]]
        np.testing.assert_allclose(measured, logits, atol=5e-4 * float(np.abs(logits).max()))
    assert len({answer.process for answer in running.traffic.answers}) == running.way.api_servers
    assert len(counted(running.server, "vllm:request_success_total")) == running.way.ranks


@pytest.mark.cell("ways", "{way}", "log-probabilities")
def test_steered_log_probabilities_are_the_references(running: Running, reference: Reference) -> None:
    steered = [number for number, answer in enumerate(running.traffic.answers) if answer.steered]
    assert len(steered) == N_REQUESTS * 2 // 3
    for number in steered:
        expected, _ = running.traffic.expected(number, reference)
        choice = running.traffic.answers[number].choice
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=5e-4)
        plain, _ = reference.run(choice["prompt_token_ids"], choice["token_ids"], None)
        chosen = [plain[i, token] for i, token in enumerate(choice["token_ids"])]
        assert np.abs(np.subtract(chosen, expected)).max() > 0.01, "it would not show that it was steered"


@pytest.mark.cell("ways", "{way}", "receipts")
def test_receipts_count_and_every_name_means_one_thing_at_a_time(running: Running, reference: Reference) -> None:
    server, kept = running.server, set()
    for answer in running.traffic.answers:
        if answer.steered:
            (receipt,) = answer.choice["steering"]
            assert receipt["tokens_edited"] == len(answer.choice["token_ids"])
            assert receipt["digest"] == "sha256:" + answer.plan.edits[0].direction.digest.hex()
        # A record can be read wherever one asks.
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False, headers=HEADERS) as client:
            record = client.get(f"/v1/probes/results/{answer.response['id']}")
        assert record.status_code == 200, record.text
        kept.add(record.json()["id"])
    assert len(kept) == N_REQUESTS
    checker = Checker(reference, running.swaps.content)
    for choice in running.swaps.answers:
        checker.check(choice)
    assert len(running.swaps.answers) > N_SWAPS // 2
    # What was counted in several processes adds up.
    ours = sum(1 for a in running.traffic.answers if a.steered)
    (edited,) = [v for labels, v in _steered(server).items() if '"adhoc"' in labels]
    assert edited == ours
    (swapped,) = [v for labels, v in _steered(server).items() if f'"{NAME}"' in labels]
    # By a vector and a feature of that name.
    assert swapped == len(running.swaps.answers)


def _steered(server: Server) -> dict[str, float]:
    return counted(server, "pilothouse_steering_requests_total")


@pytest.mark.cell("ways", "{way}", "unsteered")
def test_unsteered_requests_beside_them_are_untouched(running: Running, reference: Reference) -> None:
    plain = [number for number, answer in enumerate(running.traffic.answers) if not answer.steered]
    assert len(plain) == N_REQUESTS // 3
    for number in plain:
        choice = running.traffic.answers[number].choice
        expected, _ = running.traffic.expected(number, reference)
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=1e-4)
        assert "steering" not in choice


@pytest.mark.cell("ways", "{way}", "no leaks")
def test_names_slots_and_plans_do_not_outlive_what_they_were_for(running: Running) -> None:
    server, way = running.server, running.way
    path = f"{PATHS['vectors']}/{PASSING}"
    data = vector_file(77).replace(NAME.encode(), PASSING.encode())
    with httpx.Client(base_url=server.url, timeout=300, trust_env=False, headers=HEADERS) as client:
        assert client.post(PATHS["vectors"], content=data).status_code == 200
        seen = [server.get(path).status_code for _ in range(4)]
        assert client.delete(path).status_code == 200
        gone = [server.get(path).status_code for _ in range(4)]
    assert (seen, gone) == ([200] * 4, [404] * 4)
    # As many plans as there are rows, in each engine, and more of them that wait.
    numbers = range(100, 100 + 2 * ROWS * way.ranks)
    with ThreadPoolExecutor(len(numbers)) as pool:
        answers = list(pool.map(lambda number: ask(server, number, number % way.ranks, who=False), numbers))
    assert [answer.choice["finish_reason"] for answer in answers] == ["length"] * len(numbers)
    assert not counted(server, "vllm:num_requests_running")
    assert not counted(server, "vllm:num_requests_waiting")
    assert not counted(server, "pilothouse_engine_gaps_total")
    log = server.log.read_text(errors="replace")
    assert "Slots are not as they should be" not in log
    assert "Traceback" not in log
