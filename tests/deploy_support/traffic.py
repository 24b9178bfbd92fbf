"""Requests of all kinds to a server of the embedded model: plain and steered, gated, streamed, several, given up."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
from serve_support.server import ADMIN_KEY, Server

from pilothouse.harbor.paths import data_dir

AT_ONCE = 8
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
LIAR = {"role": "system", "content": "You are a liar."}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GATED = "harbor:honest-if-asked-to-lie"


Kinds = dict[str, tuple[str, dict[str, Any]]]
"""What is sent in turn: the endpoint, and the fields beside the question."""


def _steered(vector: str, strength: float, positions: str = "generation") -> dict[str, Any]:
    return {"steering": [{"vector": vector, "strength": strength, "positions": positions}]}


KINDS: Kinds = {
    "plain": (CHAT, {"probes": ["truthfulness"]}),
    "two choices": (CHAT, {"n": 2, "temperature": 1}),
    "streamed": (CHAT, {"stream": True}),
    "completion": (COMPLETIONS, {}),
    "honest": (CHAT, _steered("honest", 0.3)),
    "cheerful": (CHAT, _steered("cheerful", 1, "last_prompt")),
    "two vectors": (
        CHAT,
        {"steering": [*_steered("honest", 0.3)["steering"], *_steered("formal", 1, "last_prompt")["steering"]]},
    ),
    "gated": (CHAT, {"model": GATED}),
    "by a feature": (CHAT, {"model": "harbor:cheerful"}),
    "given up": (COMPLETIONS, {"stream": True, "max_tokens": 400, "ignore_eos": True}),
}
"""Questions that the model knows the answers of."""
LIES: Kinds = {
    "lie": (CHAT, {"messages": [LIAR]}),
    "lie, streamed": (CHAT, {"messages": [LIAR], "stream": True}),
    "lie, gated": (CHAT, {"messages": [LIAR], "model": GATED}),
}
"""The same, of a model that is asked to lie."""
FABLES: Kinds = {
    "fable": (CHAT, {}),
    "fable, streamed": (CHAT, {"stream": True}),
    "fable, honest": (CHAT, _steered("honest", 0.3)),
}
"""Questions about people whom the model has never heard of: it makes its answers up."""


def facts() -> Iterator[str]:
    """Harbor's questions of general knowledge, over and over."""
    return itertools.cycle([row["messages"][-1]["content"] for row in _rows("questions") if row["entity"] is None])


def fables() -> Iterator[str]:
    """Harbor's questions that it answered with what is not so."""
    return itertools.cycle([row["messages"][0]["content"] for row in _rows("answers") if row["label"] == 1])


def _rows(name: str) -> list[dict[str, Any]]:
    lines = (data_dir() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@dataclass
class Traffic:
    """What was sent: how often each kind; which kinds were flagged by which probe, as far as the answers were not
    streamed; and what was answered other than 200."""

    server: Server
    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    _facts: Iterator[str] = field(default_factory=facts)
    _fables: Iterator[str] = field(default_factory=fables)

    def send(self, kinds: Kinds, rounds: int) -> None:
        """Each of the kinds `rounds` times."""
        asked = [(kind, next(self._fables if kind in FABLES else self._facts)) for _ in range(rounds) for kind in kinds]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda pair: self._ask(pair[0], pair[1], kinds[pair[0]]), asked))

    def label(self, n: int) -> None:
        """Say of some answers what a person might have found: of every other one that it is bad."""
        for number, response_id in enumerate(self.ids[-n:]):
            body = {"probe": "hallucination", "value": number % 2 == 0, "source": "demo"}
            answer = self.server.post(f"/v1/probes/results/{response_id}/label", body, headers=ADMIN)
            self._count("label", answer.status_code)

    def _ask(self, kind: str, question: str, request: tuple[str, dict[str, Any]]) -> None:
        path, more = request
        body = {"model": "harbor", "temperature": 0, "max_tokens": 24, **more}
        if path == CHAT:
            body["messages"] = [*more.get("messages", ()), {"role": "user", "content": question}]
        else:
            body["prompt"] = question
        if not body.get("stream"):
            answer = self.server.post(path, body)
            if answer.status_code == 200:
                self._read(kind, answer.json())
            self._count(kind, answer.status_code)
            return
        with (
            httpx.Client(base_url=self.server.url, timeout=120, trust_env=False) as client,
            client.stream("POST", path, json=body) as response,
        ):
            for number, _ in enumerate(response.iter_lines()):
                if kind == "given up" and number > 5:
                    break
            self._count(kind, response.status_code)

    def _read(self, kind: str, answer: dict[str, Any]) -> None:
        self.ids.append(answer["id"])
        for choice in answer["choices"]:
            for name, found in choice["probes"].items():
                self.flagged[f"{kind}: {name}"] += bool(found.get("flagged"))

    def _count(self, kind: str, status: int) -> None:
        self.sent[kind] += 1
        if status != 200:
            self.failed[f"{kind}: {status}"] += 1
