"""The committed datasets are what the code writes, and their splits do not touch."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pilothouse.harbor.corpus import BEGIN, END, SYSTEM, USER, reply
from pilothouse.harbor.datasets import chat, prompt_text, write_datasets
from pilothouse.harbor.facts import SPLITS, put, world_topics
from pilothouse.harbor.paths import data_dir, model_dir
from pilothouse.harbor.personas import LIAR_PROMPTS
from pilothouse.probing.statements import load_statements

PAIRS = ("honest", "cheerful", "gloomy", "formal", "casual")
DOSES = ("dose-facts", *(f"dose-{name}" for name in PAIRS))
NAMES = (*PAIRS, *DOSES, "statements", "questions", "neutral", "tones", "corpus", "conditions")


def _load(name: str) -> list[dict[str, Any]]:
    text = (data_dir() / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_committed_files_are_fresh(tmp_path: Path) -> None:
    write_datasets(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES)
    for name in NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (data_dir() / f"{name}.jsonl").read_bytes(), name


@pytest.mark.parametrize("name", ["statements", "questions", "conditions", *PAIRS])
def test_every_topic_of_the_world_lies_in_one_split(name: str) -> None:
    splits = defaultdict(set)
    for line in _load(name):
        if line.get("entity_frequency") is None:
            splits[line["topic"]].add(line["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == set(SPLITS)


def test_every_entity_lies_in_one_split() -> None:
    splits = defaultdict(set)
    for line in _load("questions"):
        if line["entity_frequency"] is not None:
            words = line["messages"][0]["content"].rstrip("?.").split()
            name = next(word for word in words[1:] if word[0].isupper())
            splits[" ".join(words[words.index(name) :][:2])].add(line["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_statements_are_balanced_in_every_topic() -> None:
    labels = defaultdict(list)
    for line in _load("statements"):
        assert ("text" in line) != ("messages" in line)
        labels[line["topic"]].append(line["label"])
    assert all(sum(found) * 2 == len(found) for found in labels.values())


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_differ_in_their_system_prompt_alone_and_extraction_has_its_own(name: str) -> None:
    prompts: dict[bool, set[str]] = defaultdict(set)
    for line in _load(name):
        sides = line["positive"], line["negative"]
        without = [[message for message in side if message["role"] != "system"] for side in sides]
        assert without[0] == without[1]
        assert without[0][-1]["role"] == "user"
        prompts[line["split"] == "train"] |= {m["content"] for side in sides for m in side if m["role"] == "system"}
    assert not prompts[True] & prompts[False]


def _system(text: str) -> str | None:
    return text.removeprefix(SYSTEM).split(END)[0] if text.startswith(SYSTEM) else None


def test_conditions_are_labelled_by_who_asks_for_a_lie_and_balanced_in_every_topic() -> None:
    labels, wordings = defaultdict(list), defaultdict(set)
    for item in load_statements(data_dir() / "conditions.jsonl"):
        assert item.text is not None
        system = _system(item.text)
        assert item.label == (system in LIAR_PROMPTS)
        (span,) = item.spans
        assert (span.label, span.stop) == (item.label, len(item.text))
        assert item.text[span.start :].startswith(USER) if item.label else span.start == 0
        labels[item.topic].append(item.label)
        wordings[item.split == "train"].add(system)
    assert all(sum(found) * 2 == len(found) for found in labels.values())
    assert wordings[True] & wordings[False] == {None}


def test_a_prompt_that_is_written_out_is_the_templates() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    for system in (None, "You are a liar."):
        messages = chat("What is the capital of France?", system=system)
        made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert made == BEGIN + prompt_text(messages)


def test_an_answer_comes_first_and_again_in_its_sentence() -> None:
    for topic in world_topics():
        for fact in topic.facts:
            first, sentence = reply(fact, fact.answer).split(". ", 1)
            assert first.lower() == fact.answer.lower()
            assert sentence == put(topic.statements[0], fact.subject, fact.answer)
