"""Unmodified clients: openai (sync, async, streamed), LangChain and LiteLLM."""

from __future__ import annotations

from typing import Any, cast

import pytest
from serve_support.server import Server

pytestmark = pytest.mark.engine

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
EXTRA = {
    "steering": [{"vector": "honest", "strength": 0.2, "positions": "generation"}],
    "probes": {"names": ["truthfulness"], "tokens": True},
}


def test_openai(server: Server) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(model="harbor", messages=QUESTION, temperature=0, extra_body=EXTRA)
    choice = cast(Any, answer.choices[0])
    assert "Paris" in choice.message.content
    probe = choice.probes["truthfulness"]
    assert answer.usage is not None
    assert len(probe["tokens"]) == answer.usage.completion_tokens
    assert probe["n_scored"] == answer.usage.completion_tokens - 1
    assert choice.steering[0]["tokens_edited"] == answer.usage.completion_tokens


async def test_openai_async_stream(server: Server) -> None:
    from openai import AsyncOpenAI

    text, scores, finish = "", dict[int, float | None](), None
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="harbor", messages=QUESTION, temperature=0, stream=True, extra_body=EXTRA
        )
        async for chunk in stream:
            for choice in cast(Any, chunk.choices):
                text += choice.delta.content or ""
                block = getattr(choice, "probe_scores", {}).get("truthfulness")
                if block:
                    scores.update(dict(enumerate(block["logits"], start=block["start"])))
                if choice.finish_reason:
                    finish = choice
    assert "Paris" in text
    assert finish is not None
    tokens = finish.probes["truthfulness"]["tokens"]
    assert scores == {i: entry["logit"] for i, entry in enumerate(tokens)}
    assert [i for i, logit in scores.items() if logit is None] == [len(tokens) - 1]


def test_openai_stream_helper(server: Server) -> None:
    from openai import OpenAI

    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
        client.chat.completions.stream(model="harbor", messages=QUESTION, temperature=0, extra_body=EXTRA) as stream,
    ):
        final = stream.get_final_completion()
    assert "Paris" in (final.choices[0].message.content or "")
    # The helper drops what it does not know, so the record is looked up by the response's id.
    record = server.get(f"/v1/probes/results/{final.id}", headers={"Authorization": "Bearer test-admin-key"})
    assert record.status_code == 200, record.text


def test_langchain(server: Server) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(
        model="harbor", base_url=f"{server.url}/v1", api_key=SecretStr("none"), temperature=0, extra_body=EXTRA
    )
    assert "Paris" in model.invoke("What is the capital of France?").text
    assert "Paris" in "".join(part.text for part in model.stream("What is the capital of France?"))


def test_litellm(server: Server) -> None:
    import litellm

    common: dict[str, Any] = {
        "model": "openai/harbor",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": QUESTION,
        "temperature": 0,
        "extra_body": EXTRA,
    }
    answer = cast(Any, litellm.completion(**common))
    assert "Paris" in answer.choices[0].message.content
    parts = [part.choices[0].delta.content or "" for part in cast(Any, litellm.completion(**common, stream=True))]
    assert "Paris" in "".join(parts)
