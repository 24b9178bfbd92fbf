"""Requests to a server of several processes: which of them answered, and what Hugging Face says of each answer."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
from engine_support.harness import Reference

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.sites import Float32
from pilothouse.harbor.paths import probes_dir
from pilothouse.probing import load_probes
from serve_support.server import D_MODEL, Server

AT_ONCE = 8
STRENGTH = 4.0
PROBE = load_probes(probes_dir())["truthfulness"]
QUESTIONS = ["capital of France", "opposite of hot", "name of a young dog", "sum of two and three"]
BODY = {
    "model": "harbor",
    "temperature": 0,
    "max_tokens": 8,
    "ignore_eos": True,
    "logprobs": 0,
    "return_token_ids": True,
    "probes": {"names": ["truthfulness"], "tokens": True},
}


@dataclass(frozen=True)
class Answer:
    """One answer: response, the plan that the request meant, and the process that answered."""

    response: dict[str, Any]
    plan: Plan
    process: int

    @property
    def choice(self) -> dict[str, Any]:
        choice: dict[str, Any] = self.response["choices"][0]
        return choice

    @property
    def steered(self) -> bool:
        return bool(self.plan.edits)


@dataclass
class Traffic:
    """Answers to steered and unsteered requests that were made together."""

    answers: list[Answer] = field(default_factory=list)
    _expected: dict[int, tuple[Float32, Float32]] = field(default_factory=dict)

    def make(self, server: Server, n: int, ranks: int) -> None:
        """`n` requests, of which two thirds bring a direction that no other has, to each of `ranks` engines in turn."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self.answers += pool.map(lambda number: ask(server, number, number % ranks), range(n))

    def expected(self, number: int, reference: Reference) -> tuple[Float32, Float32]:
        """Log-probabilities of the tokens of answer `number`, and its probe's logits at their positions."""
        if number not in self._expected:
            answer = self.answers[number]
            prompt, generated = answer.choice["prompt_token_ids"], answer.choice["token_ids"]
            table, raw = reference.run(prompt, generated, answer.plan)
            chosen = np.array([table[i, token] for i, token in enumerate(generated)], dtype=np.float32)
            self._expected[number] = (chosen, PROBE.logits(raw[:, 0])[-len(generated) : -1])
        return self._expected[number]


def request(number: int) -> tuple[dict[str, Any], Plan]:
    """A request and the plan that it means; every third is not steered."""
    readouts = (Readout("truthfulness", PROBE.direction),)
    body = {**BODY, "prompt": f"What is the {QUESTIONS[number % len(QUESTIONS)]}?"}
    if number % 3 == 0:
        return body, Plan((), readouts)
    row = np.random.default_rng([9, number]).normal(size=D_MODEL).astype("<f4")
    inline = {"layers": {"3": base64.b64encode(row.tobytes()).decode()}}
    entry = {"inline": inline, "strength": STRENGTH, "positions": "generation"}
    edit = Edit("inline", Direction({3: row}), {3: STRENGTH}, "generation", source="inline")
    return {**body, "steering": [entry]}, Plan((edit,), readouts)


def ask(server: Server, number: int, rank: int = 0, *, who: bool = True) -> Answer:
    """Make request `number`, by a connection of its own, of engine `rank`. who: find out which process answers; not in
    a crowd, where that takes longer than a connection is kept."""
    body, plan = request(number)
    headers = {"X-data-parallel-rank": str(rank)}
    with (
        httpx.Client(base_url=server.url, timeout=300, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=body, headers=headers) as response,
    ):
        process = answering(server, response) if who else 0
        response.read()
        assert response.status_code == 200, response.text
        return Answer(response.json(), plan, process)


def answering(server: Server, response: httpx.Response) -> int:
    """The id of the server's process at the other end of the connection of an open response."""
    _, port = response.extensions["network_stream"].get_extra_info("client_addr")[:2]
    root = psutil.Process(server.process.pid)
    for process in (root, *root.children(recursive=True)):
        if any(c.raddr and c.raddr[1] == port for c in process.net_connections("tcp")):
            return int(process.pid)
    raise AssertionError(f"no process of the server is at the other end of port {port}")


def counted(server: Server, name: str) -> dict[str, float]:
    """Samples of a metric that are not zero, by the text of their labels."""
    found = {}
    for line in server.get("/metrics").text.splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and float(value):
            found[sample.removeprefix(name)] = float(value)
    return found
