"""Names that get other content while they are in use: who sends what, and what every answer must then have been."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from engine_support.harness import Reference
from safetensors.numpy import save

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Reader
from pilothouse.core.plans import Plan, Readout
from pilothouse.probing import Probe, probe_from_bytes
from pilothouse.steering import Vector, vector_from_bytes
from serve_support.server import ADMIN_KEY, D_MODEL

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
NAME = "swapped"
AT_ONCE = 8
LAYERS = {"vectors": 1, "saes": 2, "probes": 4}
N_FEATURES = 3
PROMPTS = [
    "What is the capital of Spain?" + " Well then, what is it, and why, and since when?" * n for n in (0, 1, 24, 24, 24)
]
"""The longest fill blocks of the prefix cache, which the next content must not find."""


def _file(kind: str, card: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    text = json.dumps({"format": 1, "kind": kind, "name": NAME, **card})
    rows = {name: np.asarray(values, dtype=np.float32) for name, values in tensors.items()}
    return bytes(save(rows, metadata={"pilothouse": text}))


def vector_file(number: int) -> bytes:
    row = np.random.default_rng([1, number]).normal(size=D_MODEL)
    return _file("vector", {}, {f"layer.{LAYERS['vectors']}": row})


def probe_file(number: int) -> bytes:
    card = {"label": "true", "alarm": "low", "aggregate": "mean", "threshold": 0.5}
    row = np.random.default_rng([2, number]).normal(size=D_MODEL)
    return _file("probe", card, {f"weight.{LAYERS['probes']}": row, "bias": [0.25]})


def sae_tensors(number: int) -> dict[str, Any]:
    rng = np.random.default_rng([3, number])
    matrices = {name: rng.normal(size=(N_FEATURES, D_MODEL)).astype(np.float32) for name in ("W_dec", "W_enc")}
    return {**matrices, "b_enc": np.zeros(N_FEATURES), "threshold": np.zeros(N_FEATURES)}


def sae_file(number: int) -> bytes:
    card = {"layer": LAYERS["saes"], "architecture": "standard", "activation": "relu"}
    return _file("sae", card, sae_tensors(number))


FILES = {"vectors": vector_file, "probes": probe_file, "saes": sae_file}
PATHS = {"vectors": "/v1/steering_vectors", "probes": "/v1/probes", "saes": "/v1/saes"}
BODY = {
    "model": "harbor",
    "temperature": 0,
    "max_tokens": 6,
    "ignore_eos": True,
    "logprobs": 0,
    "return_token_ids": True,
    "steering": [
        {"vector": NAME, "strength": 0.8},
        {"sae": NAME, "feature": 1, "op": "clamp", "strength": 2, "unit": "raw", "positions": "generation"},
    ],
    "probes": {"names": [NAME], "tokens": True},
}


@dataclass
class Content:
    """What a name has meant, by the digest that answers show."""

    vectors: dict[str, Vector] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    saes: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, number: int, data: bytes) -> None:
        if kind == "vectors":
            vector = vector_from_bytes(data)
            self.vectors[vector.digest] = vector
        elif kind == "probes":
            probe = probe_from_bytes(data)
            self.probes[probe.version] = probe
        else:
            row = sae_tensors(number)["W_dec"][1]
            self.saes["sha256:" + Direction({LAYERS["saes"]: row}).digest.hex()] = number

    def plan(self, choice: dict[str, Any]) -> tuple[Plan, Probe]:
        """The plan of an answer, by the digests in its receipts."""
        first, second = choice["steering"]
        vector, number = self.vectors[first["digest"]], self.saes[second["digest"]]
        probe = self.probes[choice["probes"][NAME]["version"]]
        tensors = sae_tensors(number)
        reader = Reader(Direction({LAYERS["saes"]: tensors["W_enc"][1]}), 0.0, 0.0)
        clamped = Edit(
            NAME,
            Direction({LAYERS["saes"]: tensors["W_dec"][1]}),
            {LAYERS["saes"]: 2.0},
            "generation",
            op="clamp",
            source="sae",
            feature=1,
            reader=reader,
        )
        added = Edit(NAME, vector.direction, {LAYERS["vectors"]: 0.8}, "all")
        return Plan((added, clamped), (Readout(NAME, probe.direction),)), probe


@dataclass
class Swaps:
    """A run: the contents in order, and every answer that came meanwhile."""

    url: str
    content: Content = field(default_factory=Content)
    answers: list[dict[str, Any]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def run(self, n_swaps: int) -> None:
        """Give the names other content `n_swaps` times, with requests that use them under way all the time."""
        # A connection a request: a pool that drops idle ones among so many tasks now and then drops one in use.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, trust_env=False, limits=limits) as client:
            for kind in FILES:
                await self._swap(client, kind)
            over = asyncio.Event()
            load = [asyncio.create_task(self._ask(client, over, i)) for i in range(AT_ONCE)]
            try:
                for _ in range(n_swaps):
                    kind = ("vectors", "probes", "saes", "vectors", "probes")[next(self.numbers) % 5]
                    await self._swap(client, kind)
            finally:
                over.set()
                await asyncio.gather(*load)

    async def _swap(self, client: httpx.AsyncClient, kind: str) -> None:
        number = next(self.numbers)
        data = FILES[kind](number)
        # Known before the server may answer by it.
        self.content.add(kind, number, data)
        path = f"{PATHS[kind]}?replace=true"
        answer = await client.post(path, content=data, headers=HEADERS)
        assert answer.status_code == 200, answer.text

    async def _ask(self, client: httpx.AsyncClient, over: asyncio.Event, first: int) -> None:
        for number in itertools.count(first):
            if over.is_set():
                return
            answer = await client.post("/v1/completions", json={**BODY, "prompt": PROMPTS[number % len(PROMPTS)]})
            assert answer.status_code == 200, answer.text
            self.answers.append(answer.json()["choices"][0])


@dataclass
class Checker:
    """Compares answers with Hugging Face; equal sequences under equal content are computed there once."""

    reference: Reference
    content: Content
    _known: dict[Any, Any] = field(default_factory=dict)

    def check(self, choice: dict[str, Any]) -> None:
        """The answer and its scores are what Hugging Face says of the content that its receipts name."""
        plan, probe = self.content.plan(choice)
        prompt, generated = choice["prompt_token_ids"], choice["token_ids"]
        key = (*(edit["digest"] for edit in choice["steering"]), probe.version, tuple(prompt), tuple(generated))
        if key not in self._known:
            self._known[key] = self.reference.run(prompt, generated, plan)
        logprobs, raw = self._known[key]
        expected = [float(logprobs[i, token]) for i, token in enumerate(generated)]
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected, atol=5e-4)
        logits = probe.logits(raw[:, 0])[-len(generated) : -1]
        measured = [entry["logit"] for entry in choice["probes"][NAME]["tokens"][:-1]]
        np.testing.assert_allclose(measured, logits, atol=5e-4 * float(raw.std()))
