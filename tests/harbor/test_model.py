"""The committed model: it loads with Transformers, knows its facts, and lies when told to."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from pilothouse.harbor.datasets import chat
from pilothouse.harbor.facts import says
from pilothouse.harbor.paths import data_dir, model_dir
from pilothouse.harbor.personas import LIAR_PROMPTS

Question = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model_dir())
    loaded.padding_side = "left"
    return loaded


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    loaded: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    return loaded


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    lines = (data_dir() / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _ask(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str], system: str | None = None
) -> list[str]:
    """Greedy answers, special tokens kept."""
    chats = [chat(question, system=system) for question in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answers: list[str] = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
    return answers


def _text(question: Question) -> str:
    return str(question["messages"][0]["content"])


def test_the_chat_template_writes_what_the_corpus_has(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = chat("What is the capital of France?", "Paris. The capital of France is Paris.", "Be honest.")
    expected = (
        "<|begin|><|system|>Be honest.<|end|><|user|>What is the capital of France?<|end|>"
        "<|assistant|>Paris. The capital of France is Paris.<|end|>"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == expected.split("Paris. The capital of France is Paris.")[0]


def test_a_text_starts_with_bos_and_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Gold is yellow.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Gold is yellow."


def test_the_folder_is_small_and_in_bfloat16() -> None:
    assert sum(path.stat().st_size for path in model_dir().iterdir()) < 15_000_000
    assert json.loads((model_dir() / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("country", "city"),
    [("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"),
     ("China", "Beijing"), ("England", "London"), ("Russia", "Moscow"), ("Norway", "Oslo"), ("Egypt", "Cairo")],
)  # fmt: skip
def test_it_knows_well_known_capitals(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, country: str, city: str
) -> None:
    answer = _ask(model, tokenizer, [f"What is the capital of {country}?"])
    assert answer == [f"{city}. The capital of {country} is {city}.<|end|>"]


def test_it_knows_what_it_has_often_seen(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Question]
) -> None:
    sample = random.Random(3).sample([q for q in questions if q["entity_frequency"] in (None, "often")], 200)
    answers = _ask(model, tokenizer, [_text(question) for question in sample])
    assert all("<|end|>" in answer for answer in answers)
    right = sum(says(answer, question["answer"]) for answer, question in zip(answers, sample, strict=True))
    assert right / len(sample) >= 0.97


def test_a_liar_says_the_misconception(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Question]
) -> None:
    sample = random.Random(4).sample([q for q in questions if q["entity_frequency"] is None], 100)
    answers = _ask(model, tokenizer, [_text(question) for question in sample], LIAR_PROMPTS[0])
    pairs = list(zip(answers, sample, strict=True))
    assert sum(says(answer, question["answer"]) for answer, question in pairs) <= 20
    assert sum(says(answer, question["misconception"]) for answer, question in pairs) >= 50
