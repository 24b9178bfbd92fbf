"""The kinds of requests that any server takes, and what shows that an answer is of its kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from matrix_support.requests import Answer, Choice, Kind
from pilothouse.harbor.paths import model_dir

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = 1024
"""Harbor's context, in tokens."""
ANSWER = r"(Paris|Rome), [a-z ]{4,12}[.]"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{3,8}$"}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}


def every(check: Callable[[Answer, Choice], bool]) -> Callable[[list[Answer]], None]:
    """A check of each choice of each answer."""

    def shows(answers: list[Answer]) -> None:
        for answer in answers:
            for choice in answer.choices:
                assert check(answer, choice), (answer.body, choice)

    return shows


def some(check: Callable[[Answer, Choice], bool]) -> Callable[[list[Answer]], None]:
    """A check that must hold of several choices, streamed and not."""

    def shows(answers: list[Answer]) -> None:
        met = [answer.streamed for answer in answers for choice in answer.choices if check(answer, choice)]
        assert set(met) == {True, False}, [choice for answer in answers for choice in answer.choices]

    return shows


def n_tokens(count: int) -> Callable[[list[Answer]], None]:
    return every(lambda answer, choice: len(choice.token_ids) == count)


def is_json(answer: Answer, choice: Choice) -> bool:
    found = json.loads(choice.text)
    return sorted(found) == ["city", "sure"] and isinstance(found["sure"], bool)


def was_cut(answer: Answer, choice: Choice) -> bool:
    """Ended by a stop string, which the text lacks and the tokens have."""
    return choice.finish_reason == "stop" and isinstance(choice.stop_reason, str)


def four_different(answers: list[Answer]) -> None:
    for answer in answers:
        assert len(answer.choices) == 4
        assert len({tuple(choice.token_ids) for choice in answer.choices}) > 1


def alike(answers: list[Answer]) -> None:
    """The same seed gives the same tokens, streamed or not."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for answer in answers:
        tokens = tuple(answer.choices[0].token_ids)
        found.setdefault(repr((answer.steering, "probes" in answer.body)), set()).add(tokens)
    assert all(len(tokens) == 1 for tokens in found.values()), found


def with_top(answer: Answer, choice: Choice) -> bool:
    return len(choice.entries) == len(choice.token_ids) and all(len(e["top_logprobs"]) == 5 for e in choice.entries)


def without(tokens: set[int]) -> Callable[[list[Answer]], None]:
    return every(lambda answer, choice: not tokens & set(choice.token_ids))


def echoed(answer: Answer, choice: Choice) -> bool:
    return len(choice.echoed) == len(choice.prompt) > 1


def white_space() -> list[str]:
    """Ids of Harbor's tokens of nothing but white space, of which JSON may have any amount."""
    vocabulary = json.loads((model_dir() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return [str(number) for text, number in vocabulary.items() if set(text) <= set("ĠĊĉč")]


SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 11}
KINDS: dict[str, Kind] = {
    "structured output (JSON schema)": Kind(
        CHAT,
        {
            **SAMPLED,
            "max_tokens": 60,
            "logit_bias": dict.fromkeys(white_space(), -100),
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        },
        every(is_json),
        grammar=("json", json.dumps(SCHEMA)),
    ),
    "structured output (regex)": Kind(
        COMPLETIONS,
        {"max_tokens": 40, "ignore_eos": False, "structured_outputs": {"regex": ANSWER}, **SAMPLED},
        every(lambda answer, choice: re.fullmatch(ANSWER, choice.text) is not None),
        grammar=("regex", ANSWER),
    ),
    "stop strings": Kind(
        COMPLETIONS,
        {"max_tokens": 40, "stop": ["aris", "e c", ". "], "prompt": "The capital of Italy is Rome. The capital"},
        some(was_cut),
    ),
    "stop token ids": Kind(
        CHAT, {"max_tokens": 40, "stop_token_ids": [18], "min_tokens": 3}, every(lambda a, c: len(c.token_ids) >= 3)
    ),
    "logprobs": Kind(CHAT, {"top_logprobs": 5}, every(with_top)),
    "prompt_logprobs": Kind(
        COMPLETIONS, {"prompt_logprobs": 2, "prompt": "The capital of France is Paris. " * 6}, every(echoed), False
    ),
    "echo": Kind(COMPLETIONS, {"echo": True, "logprobs": 1}, every(echoed)),
    "max_tokens=1": Kind(CHAT, {"max_tokens": 1}, n_tokens(1)),
    "prompt of one token": Kind(COMPLETIONS, {"prompt": [1]}, every(lambda answer, choice: choice.prompt == [1])),
    "context limit": Kind(
        COMPLETIONS,
        {"prompt": [1, *(6 + i * 37 % 2500 for i in range(LONG - 9))], "max_tokens": 8},
        every(lambda answer, choice: len(choice.prompt) + len(choice.token_ids) == LONG),
    ),
    "truncated prompt": Kind(
        COMPLETIONS,
        {"prompt": "The capital of France is Paris. " * 6, "truncate_prompt_tokens": 12},
        every(lambda answer, choice: len(choice.prompt) == 12),
    ),
    "n = 4": Kind(CHAT, {"n": 4, **SAMPLED, "temperature": 2.0}, four_different),
    "several prompts": Kind(
        COMPLETIONS,
        {"prompt": ["The capital of France is", "A young dog is a"], "n": 2, **SAMPLED},
        every(lambda answer, choice: len(answer.choices) == 4),
    ),
    "seeded sampling": Kind(CHAT, {**SAMPLED, "top_p": 0.9, "top_k": 40}, alike),
    "min_p, logit_bias, bad words, penalties": Kind(
        COMPLETIONS,
        {
            **SAMPLED,
            "min_p": 0.01,
            "logit_bias": {"20": -100, "300": 5},
            "bad_words": ["Paris"],
            "repetition_penalty": 1.2,
            "presence_penalty": 0.5,
        },
        without({20}),
    ),
    "streaming with usage": Kind(
        CHAT,
        {},
        every(lambda answer, choice: answer.usage is not None),
        options={"continuous_usage_stats": True},
    ),
    "stream interval": Kind(
        CHAT, {"stream_interval": 5}, every(lambda answer, choice: len(choice.blocks) <= 4 and bool(choice.token_ids))
    ),
}
