"""Streams: which chunks change, when scores come, and that nothing else is touched."""

import json
from typing import Any

import pytest
from api_support.client import PROMPT, Client, choices_of
from api_support.fake_engine import COMPLETIONS, MODEL, FakeServer
from hypothesis import given
from hypothesis import strategies as st

from pilothouse.api.plans import Ask
from pilothouse.api.session import Session

BOTH = {"names": ["truthfulness", "risk"], "tokens": True}


def per_choice(chunks: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        found.setdefault(chunk["index"], []).append(chunk)
    return found


def check_stream(chunks: list[dict[str, Any]]) -> None:
    """One choice's chunks: scores in order, behind their tokens, complete at the finish, equal to the summary."""
    finish = chunks[-1]
    assert finish["finish_reason"] is not None
    assert all(c["finish_reason"] is None for c in chunks[:-1])
    assert all("probes" not in c and "steering" not in c for c in chunks[:-1])
    for name, summary in finish["probes"].items():
        logits: list[float | None] = []
        scores: list[float | None] = []
        announced = 0
        for chunk in chunks:
            block = chunk.get("probe_scores", {}).get(name)
            if block is not None:
                assert block["start"] == len(logits)
                assert len(block["logits"]) == len(block["scores"]) > 0
                logits += block["logits"]
                scores += block["scores"]
                if chunk is not finish:
                    assert len(logits) <= announced, "a score came before or with its token"
                    assert None not in block["logits"]
            text = chunk["delta"].get("content", "") if "delta" in chunk else chunk["text"]
            announced += text.count("«")
        assert logits == [token["logit"] for token in summary["tokens"]]
        assert scores == [token["score"] for token in summary["tokens"]]
        assert logits[-1] is None
        assert None not in logits[:-1]


@pytest.mark.parametrize(
    "fake",
    [{}, {"late": 2}, {"late": 50}, {"per_step": 3}, {"per_step": 50}, {"per_step": 3, "late": 1, "ahead": True}],
)
@pytest.mark.parametrize("logprobs", [False, True])
async def test_scores_stream_behind_their_tokens(client: Client, fake: dict[str, Any], logprobs: bool) -> None:
    chunks = await client.chunks(probes=BOTH, max_tokens=11, n=2, fake=fake, logprobs=logprobs)
    choices = per_choice(chunks)
    assert set(choices) == {0, 1}
    for found in choices.values():
        check_stream(found)


async def test_scores_come_as_soon_as_they_may(client: Client) -> None:
    chunks = await client.chunks(probes=BOTH, max_tokens=5)
    starts = [chunk.get("probe_scores", {}).get("risk", {}).get("start") for chunk in chunks]
    # role, token 0, token 1 with the score of 0, ..., and the finish with the score of 3 and the null of 4
    assert starts == [None, None, 0, 1, 2, 3]


async def test_completions_stream_the_same(client: Client) -> None:
    body = {"prompt": [PROMPT, "other"], "n": 2, "stream": True, "probes": BOTH, "max_tokens": 4}
    response = await client.http.post(COMPLETIONS, json=body)
    choices = per_choice(choices_of([e for e in response.text.split("\n\n") if e]))
    assert set(choices) == {0, 1, 2, 3}
    for found in choices.values():
        check_stream(found)


async def test_a_stream_ends_like_the_whole_response(client: Client) -> None:
    body: dict[str, Any] = {"probes": BOTH, "steering": [{"vector": "calm", "strength": 2}], "max_tokens": 9, "n": 2}
    whole = (await client.chat(**body)).json()["choices"]
    for index, chunks in per_choice(await client.chunks(**body)).items():
        assert chunks[-1]["probes"] == whole[index]["probes"]
        assert chunks[-1]["steering"] == whole[index]["steering"]


async def test_streamed_logprobs_carry_what_is_known(client: Client) -> None:
    chunks = await client.chunks(probes=["risk"], logprobs=True, max_tokens=7, fake={"per_step": 3})
    whole = await client.choice(probes={"names": ["risk"], "tokens": True}, max_tokens=7)
    tokens = whole["probes"]["risk"]["tokens"]
    entries = [entry for chunk in chunks for entry in (chunk["logprobs"] or {"content": []})["content"]]
    known = [j for j, entry in enumerate(entries) if "probe_scores" in entry]
    assert known == [0, 1, 3, 4], "the last token of a chunk has not been read yet"
    for j in known:
        assert entries[j]["probe_scores"] == {"risk": {"logit": tokens[j]["logit"], "score": tokens[j]["score"]}}


async def test_delta_holds_nothing_of_ours(client: Client) -> None:
    for chunk in await client.chunks(probes=BOTH, steering=[{"vector": "calm"}]):
        assert set(chunk["delta"]) <= {"role", "content"}


async def test_a_stream_without_our_fields_is_untouched(client: Client) -> None:
    plain = await client.events()
    assert all('"probe' not in event and "steering" not in event for event in plain)
    probed = await client.events(probes=["risk"])
    assert probed[:-3] == plain[:-3]
    assert probed[-2:] == plain[-2:]
    assert probed[-3] != plain[-3]


async def test_a_hole_holds_scores_back_until_the_finish(client: Client) -> None:
    chunks = await client.chunks(probes=BOTH, max_tokens=6, fake={"poisoned": [2]})
    blocks = [chunk["probe_scores"]["risk"] for chunk in chunks if "probe_scores" in chunk]
    assert [block["start"] for block in blocks] == [0, 1, 2]
    assert [x is None for x in blocks[-1]["logits"]] == [True, False, False, True]


async def test_words_of_the_model_are_not_mistaken_for_keys(server: FakeServer) -> None:
    session = server.extension.open({"probes": ["risk"]}, "/v1/chat/completions", MODEL)
    for text in ('"finish_reason":"stop"', "finish_reason", '"finish_reason":null, "logprobs":{', "[DONE]"):
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        event = f"data: {json.dumps({'choices': [choice]}, separators=(',', ':'))}\n\n"
        (only,) = session.rewrite_event(event)
        assert only is event


@given(st.text())
def test_errors_and_foreign_events_pass_through(text: str) -> None:
    session = Session(Ask(steering_given=True), "", "", None)  # type: ignore[arg-type]
    bodies: list[dict[str, Any]] = [{"error": {"message": text}}, {"choices": [], "usage": {}}]
    for body in bodies:
        event = f"data: {json.dumps(body)}\n\n"
        (only,) = session.rewrite_event(event)
        assert only is event
