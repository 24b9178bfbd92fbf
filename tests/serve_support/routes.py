"""The four routes that carry the fields: what is sent to each, and what came back, told in one way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from engine_support.harness import Reference

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit
from pilothouse.core.plans import Plan, Readout
from pilothouse.harbor.paths import probes_dir
from pilothouse.probing import load_probes
from pilothouse.steering import load_vector
from serve_support.server import ADMIN_KEY, Server

PATHS = {
    "chat completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "Responses": "/v1/responses",
    "Messages": "/v1/messages",
}
ROUTES = [*PATHS]
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
QUESTION = "What is the capital of France?"
BEGINNING = "The capital of France is"
LENGTH = 14
PROBES = {"names": ["truthfulness"], "tokens": True, "prompt": True}
STRENGTH = 16.0
"""Enough to change what is said."""
STEERING = [{"vector": "everywhere", "strength": STRENGTH, "layers": [1, 4], "positions": "generation"}]


@dataclass
class Answer:
    """One generated answer. live: per probe what arrived on the events before its last one, by token; late: with it."""

    id: str = ""
    text: str = ""
    n_tokens: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    live: dict[str, dict[int, float | None]] = field(default_factory=dict)
    late: dict[str, dict[int, float | None]] = field(default_factory=dict)
    error: str = ""

    @property
    def steering(self) -> list[dict[str, Any]]:
        receipts: list[dict[str, Any]] = self.found["steering"]
        return receipts

    @property
    def probe(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.found["probes"]["truthfulness"]
        return entry


def body_of(route: str, **fields: Any) -> dict[str, Any]:
    """A greedy request of at most `LENGTH` tokens."""
    common = {"model": "harbor", "temperature": 0, **fields}
    messages = [{"role": "user", "content": QUESTION}]
    match route:
        case "chat completions":
            stream = {"stream_options": {"include_usage": True}} if fields.get("stream") else {}
            return {"messages": messages, "max_tokens": LENGTH, **stream, **common}
        case "completions":
            stream = {"stream_options": {"include_usage": True}} if fields.get("stream") else {}
            return {"prompt": BEGINNING, "max_tokens": LENGTH, **stream, **common}
        case "Responses":
            return {"input": QUESTION, "max_output_tokens": LENGTH, **common}
    return {"messages": messages, "max_tokens": LENGTH, **common}


def send(server: Server, route: str, stream: bool, **fields: Any) -> httpx.Response:
    more = {"stream": True} if stream else {}
    return server.post(PATHS[route], body_of(route, **more, **fields))


def ask(server: Server, route: str, stream: bool, **fields: Any) -> Answer:
    """The answer of a request that is served."""
    response = send(server, route, stream, **fields)
    assert response.status_code == 200, response.text
    return tell(route, events_of(response.text) if stream else [response.json()], stream)


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


def tell(route: str, parts: Iterable[dict[str, Any]], stream: bool) -> Answer:
    """An answer from the events of its stream, or from the one body that it is."""
    answer = Answer()
    read = {"Responses": _read_response, "Messages": _read_message}.get(route, _read_choices)
    for part in parts:
        read(answer, part, stream)
    return answer


def _read_choices(answer: Answer, part: dict[str, Any], stream: bool) -> None:
    answer.id = part["id"]
    if part.get("usage"):
        answer.n_tokens = part["usage"]["completion_tokens"]
    for choice in part["choices"]:
        spoken = choice.get("delta" if stream else "message") or {}
        answer.text += spoken.get("content") or choice.get("text") or ""
        _take(answer, choice, choice["finish_reason"] is not None)


def _read_response(answer: Answer, part: dict[str, Any], stream: bool) -> None:
    kind = part.get("type") if stream else "response.completed"
    if kind == "response.output_text.delta":
        answer.text += part["delta"]
    _scores(answer, part, finished=kind == "response.completed")
    if kind == "response.failed":
        answer.error = part["response"]["error"]["message"]
    if kind == "response.completed":
        response = part["response"] if stream else part
        answer.id, answer.n_tokens = response["id"], response["usage"]["output_tokens"]
        whole = "".join(text["text"] for item in response["output"] for text in item["content"])
        assert not stream or whole == answer.text
        answer.text = whole
        answer.found = {key: response[key] for key in ("steering", "probes") if key in response}


def _read_message(answer: Answer, part: dict[str, Any], stream: bool) -> None:
    kind = part["type"]
    message = part.get("message") if kind == "message_start" else None if stream else part
    if message:
        answer.id = message["id"]
        answer.text += "".join(block["text"] for block in message["content"])
    if kind == "content_block_delta":
        answer.text += part["delta"]["text"]
    if kind == "error":
        answer.error = part["error"]["message"]
    finished = kind in ("message", "message_delta")
    _take(answer, part, finished)
    if finished:
        answer.n_tokens = part["usage"]["output_tokens"]


def _take(answer: Answer, holder: dict[str, Any], finished: bool) -> None:
    _scores(answer, holder, finished)
    found: dict[str, Any] = {key: holder[key] for key in ("steering", "probes") if key in holder}
    assert finished or not found, "the outcome came before the end"
    answer.found |= found


def _scores(answer: Answer, holder: dict[str, Any], finished: bool) -> None:
    for name, block in (holder.get("probe_scores") or {}).items():
        before = answer.live.get(name, {})
        assert block["start"] == len(before), "scores came out of order"
        assert len(block["logits"]) == len(block["scores"]) > 0
        into = (answer.late if finished else answer.live).setdefault(name, {})
        into.update(enumerate(block["logits"], block["start"]))


def steered_plan(server: Server) -> Plan:
    """What `STEERING` and `PROBES` mean."""
    whole = load_vector(server.sae.parent.parent / "vectors" / "everywhere.safetensors").direction.layers
    direction = Direction({layer: whole[layer] for layer in (1, 4)})
    edit = Edit("everywhere", direction, dict.fromkeys((1, 4), STRENGTH), "generation")
    return Plan((edit,), plain_plan().readouts)


def plain_plan() -> Plan:
    probe = load_probes(probes_dir())["truthfulness"]
    return Plan((), (Readout("truthfulness", probe.direction),))


def check_against_reference(answer: Answer, reference: Reference, plan: Plan) -> None:
    """Every token is the likeliest, and every score that of Hugging Face, under `plan`."""
    prompt = [entry["token_id"] for entry in answer.probe["prompt_tokens"]]
    tokens = [entry["token_id"] for entry in answer.probe["tokens"]]
    assert len(tokens) == answer.n_tokens > 2
    logprobs, raw = reference.run(prompt, tokens, plan)
    chosen = [row[token] for row, token in zip(logprobs, tokens, strict=True)]
    np.testing.assert_allclose(chosen, logprobs.max(-1), atol=1e-3)
    probe = load_probes(probes_dir())["truthfulness"]
    logits, tolerance = probe.logits(raw[:, 0]), 1e-4 * float(raw.std())
    generated = [entry["logit"] for entry in answer.probe["tokens"]]
    assert generated[-1] is None
    np.testing.assert_allclose(generated[:-1], logits[len(prompt) : -1], atol=tolerance)
    read = [entry["logit"] for entry in answer.probe["prompt_tokens"]]
    np.testing.assert_allclose(read[1:], logits[1 : len(prompt)], atol=tolerance)
    np.testing.assert_allclose(answer.probe["stats"]["prompt_end"], logits[len(prompt) - 1], atol=tolerance)


def check_stream(answer: Answer) -> None:
    """All scores came, in order, and what came before the end was known. How much that was depends on how busy the
    machine is: vLLM joins what a client has not fetched."""
    live, late = answer.live.get("truthfulness", {}), answer.late["truthfulness"]
    logits = [entry["logit"] for entry in answer.probe["tokens"]]
    assert {**live, **late} == dict(enumerate(logits))
    assert None not in live.values()


def officially(server: Server, route: str, stream: bool, **fields: Any) -> Answer:
    """As `ask`, by the official client of the route."""
    import anthropic
    import openai

    body = body_of(route)
    if stream:
        body["stream"] = True
    if route == "Messages":
        # Not among the client's own arguments: newer models of Anthropic's take none.
        fields["temperature"] = body.pop("temperature")
        with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
            made: Any = client.messages.create(**body, extra_body=fields)
            parts = [event.to_dict() for event in made] if stream else [made.to_dict()]
        return tell(route, parts, stream)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        create: Any = {
            "chat completions": client.chat.completions.create,
            "completions": client.completions.create,
            "Responses": client.responses.create,
        }[route]
        if stream and route != "Responses":
            body["stream_options"] = {"include_usage": True}
        made = create(**body, extra_body=fields)
        parts = [event.to_dict() for event in made] if stream else [made.to_dict()]
    return tell(route, parts, stream)


def error_of(route: str, response: httpx.Response) -> tuple[str, str | None]:
    """What an error says and which field it names, in the shape of the route's own API."""
    body = response.json()
    if route == "Messages":
        assert set(body) == {"type", "error"}
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        param, _, message = body["error"]["message"].partition(": ")
        return message, param
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == response.status_code
    return body["error"]["message"], body["error"]["param"]
