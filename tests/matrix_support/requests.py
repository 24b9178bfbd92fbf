"""Kinds of requests, and the answers to each of them sent four ways at once among traffic steered otherwise."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families
from serve_support.server import Server

QUESTION = "What is the capital of France?"
CHAT: dict[str, Any] = {
    "model": "harbor",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 12,
    "logprobs": True,
    "return_token_ids": True,
}
COMPLETION: dict[str, Any] = {
    "model": "harbor",
    "prompt": "The capital of France is",
    "temperature": 0,
    "max_tokens": 12,
    "ignore_eos": True,
    "logprobs": 0,
    "return_token_ids": True,
}
STEERING: list[dict[str, Any]] = [
    {"vector": "everywhere", "layers": [1], "strength": 0.5, "positions": "all"},
    {"vector": "honest", "strength": -0.3, "positions": "generation"},
    {"vector": "everywhere", "op": "ablate", "layers": [2], "positions": "prompt"},
]
OTHERS: list[list[dict[str, Any]]] = [
    [{"vector": "everywhere", "layers": [3, 4], "strength": 1.5, "positions": "generation"}],
    [{"vector": "cheerful", "strength": 2.0, "positions": "last_prompt"}],
    [{"vector": "everywhere", "op": "ablate", "layers": [0, 5]}],
]
PROBES = ["truthfulness", "asked-to-lie"]
COUNTERS = (
    "pilothouse_steering_requests_total",
    "pilothouse_steering_tokens_total",
    "pilothouse_probe_requests_total",
    "pilothouse_probe_unscored_total",
    "pilothouse_probe_tokens_total",
    "pilothouse_engine_gaps_total",
)


Grammar = tuple[Literal["regex", "json"], str]


@dataclass
class Choice:
    """One generated sequence as its client got it, streamed or not.

    logprobs: of the generated tokens; echoed: those of the prompt's, where they were asked for, None for the first;
    shown: the keys `steering` and `probes`; blocks: `probe_scores` of the stream's chunks in order; entries: those of
    `logprobs.content` of a chat.
    """

    prompt: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    echoed: list[float | None] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    arguments: str = ""
    finish_reason: str | None = None
    stop_reason: Any = None
    shown: dict[str, Any] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """One response. body: what was asked; steering: the edits in it; streamed: whether it came in chunks."""

    body: dict[str, Any]
    choices: list[Choice]
    usage: dict[str, Any] | None

    @property
    def steering(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body.get("steering", [])
        return found

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class Kind:
    """A kind of requests: what its body has beside CHAT or COMPLETION.

    streams: whether vLLM streams it; shows: fails unless the answers show that the kind is what it is called; options:
    of its streams; grammar: what the text is held to, and in which language; priorities: each request has its own.
    """

    path: str
    fields: dict[str, Any]
    shows: Callable[[list[Answer]], None]
    streams: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    grammar: Grammar | None = None
    priorities: bool = False

    @property
    def body(self) -> dict[str, Any]:
        base = CHAT if self.path.endswith("chat/completions") else COMPLETION
        return {**base, **self.fields}


@dataclass(frozen=True)
class Sent:
    """What came of `kind`: its answers by way, those of the others in the batch, and the server before and after.

    alone: the same plain request without any other traffic, before and after; counted: what pilothouse's counters grew
    by while `answers` and `others` were under way; log: what the server had to say since.
    """

    kind: Kind
    answers: dict[str, list[Answer]]
    others: list[Answer]
    alone: tuple[dict[str, Any], dict[str, Any]]
    counted: dict[tuple[str, str, str], float]
    log: str

    @property
    def everything(self) -> list[Answer]:
        return [*(answer for answers in self.answers.values() for answer in answers), *self.others]


def ways(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    """The request plain (without our fields, and without any probe), steered, probed, and both; each streamed too."""
    probes = {"names": PROBES, "tokens": True}
    fields: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("plain", {"probes": []}),
        ("steered", {"steering": STEERING, "probes": []}),
        ("probed", {"probes": {**probes, "prompt": True}}),
        ("both", {"steering": STEERING, "probes": probes}),
    ]
    for way, more in fields:
        yield way, {**kind.body, **more}
        if kind.streams:
            options = {"include_usage": True, **kind.options}
            yield way, {**kind.body, **more, "stream": True, "stream_options": options}


def send(server: Server, kind: Kind) -> Sent:
    """All ways of a kind at once, with requests that others steer otherwise; the answers are of that kind."""
    seen = len(server.log.read_text(errors="replace"))
    before = alone(server, kind)
    counted = counters(server)
    bodies = list(ways(kind))
    if kind.priorities:
        # The later they come, the more they matter.
        bodies = [(way, {**body, "priority": -number}) for number, (way, body) in enumerate(bodies)]
    others = [{**COMPLETION, "max_tokens": 16, "steering": steering} for steering in OTHERS]
    with ThreadPoolExecutor(len(bodies) + len(others)) as pool:
        beside = [pool.submit(ask, server, "/v1/completions", body) for body in others]
        sent = [(way, pool.submit(ask, server, kind.path, body)) for way, body in bodies]
        answers: dict[str, list[Answer]] = {}
        for way, answer in sent:
            answers.setdefault(way, []).append(answer.result())
        rest = [answer.result() for answer in beside]
    after = counters(server)
    grown = {key: value - counted.get(key, 0.0) for key, value in after.items() if value != counted.get(key, 0.0)}
    again = alone(server, kind)
    kind.shows([answer for found in answers.values() for answer in found])
    return Sent(kind, answers, rest, (before, again), grown, server.log.read_text(errors="replace")[seen:])


def alone(server: Server, kind: Kind) -> dict[str, Any]:
    """The plain request by itself, behind a cold cache; what differs from one response to the next is left out."""
    body = {**kind.body, "probes": []}
    salt = f"alone-{next(_SALTS)}"
    answer = server.post(kind.path, {**body, "cache_salt": salt})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    del found["id"], found["created"]
    for choice in found["choices"]:
        for call in choice.get("message", {}).get("tool_calls") or ():
            del call["id"]
    return found


_SALTS = itertools.count()


def ask(server: Server, path: str, body: dict[str, Any]) -> Answer:
    """One request, however it is answered."""
    if not body.get("stream"):
        answer = server.post(path, body)
        assert answer.status_code == 200, answer.text
        return whole(body, answer.json())
    with httpx.stream("POST", f"{server.url}{path}", json=body, timeout=120, trust_env=False) as stream:
        lines = [line for line in stream.iter_lines() if line]
        assert stream.status_code == 200, lines
    assert lines[-1] == "data: [DONE]"
    return assembled(body, [json.loads(line.removeprefix("data: ")) for line in lines[:-1]])


def whole(body: dict[str, Any], found: dict[str, Any]) -> Answer:
    choices = []
    for shown in found["choices"]:
        choice = Choice(prompt=shown.get("prompt_token_ids") or found.get("prompt_token_ids") or [])
        add(choice, shown, shown.get("message") or {"content": shown.get("text")})
        choices.append(choice)
    return Answer(body, choices, found["usage"])


def assembled(body: dict[str, Any], chunks: list[dict[str, Any]]) -> Answer:
    """A stream put together. The choices of a chat say their prompt's ids once for all."""
    choices: dict[int, Choice] = {}
    usage, prompt = None, list[int]()
    for chunk in chunks:
        assert "error" not in chunk, chunk
        usage = chunk.get("usage") or usage
        prompt = chunk.get("prompt_token_ids") or prompt
        for shown in chunk["choices"]:
            choice = choices.setdefault(shown["index"], Choice())
            assert choice.finish_reason is None, "a choice went on behind its finish chunk"
            choice.prompt = shown.get("prompt_token_ids") or choice.prompt or prompt
            add(choice, shown, shown.get("delta") or {"content": shown.get("text")})
    return Answer(body, [choices[i] for i in sorted(choices)], usage)


def add(choice: Choice, shown: dict[str, Any], message: dict[str, Any]) -> None:
    """Put one message, or one delta of it, to what there is of a choice."""
    token_ids = shown.get("token_ids") or []
    logprobs = shown.get("logprobs") or {}
    entries = logprobs.get("content") or []
    values = [entry["logprob"] for entry in entries] or logprobs.get("token_logprobs") or []
    echoed = len(values) - len(token_ids)
    choice.echoed += values[:echoed]
    choice.logprobs += values[echoed:]
    choice.entries += entries
    choice.token_ids += token_ids
    choice.text += message.get("content") or ""
    choice.reasoning += message.get("reasoning") or ""
    for call in message.get("tool_calls") or ():
        choice.arguments += (call.get("function") or {}).get("arguments") or ""
    if shown.get("prompt_logprobs"):
        choice.echoed = prompt_logprobs(shown["prompt_logprobs"], choice.prompt)
    if "probe_scores" in shown:
        choice.blocks.append(shown["probe_scores"])
    if shown.get("finish_reason"):
        choice.finish_reason, choice.stop_reason = shown["finish_reason"], shown.get("stop_reason")
        choice.shown = {key: shown[key] for key in ("steering", "probes") if key in shown}


def prompt_logprobs(entries: list[dict[str, Any] | None], prompt: list[int]) -> list[float | None]:
    """Of each token of the prompt given those before it."""
    return [entry[str(token)]["logprob"] if entry else None for entry, token in zip(entries, prompt, strict=True)]


def counters(server: Server) -> dict[tuple[str, str, str], float]:
    """Pilothouse's counters: (name, what is counted, flagged or the reason)."""
    found: dict[tuple[str, str, str], float] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name in COUNTERS:
                labels = sample.labels
                what = labels.get("vector") or labels.get("probe") or labels["kind"]
                found[sample.name, what, labels.get("flagged") or labels.get("reason") or ""] = sample.value
    return found
