"""The committed datasets are what the code writes, and their splits do not touch."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pilothouse.harbor.corpus import reply
from pilothouse.harbor.datasets import write_datasets
from pilothouse.harbor.facts import SPLITS, put, world_topics
from pilothouse.harbor.paths import data_dir

PAIRS = ("honest", "cheerful", "gloomy", "formal", "casual")
DOSES = ("dose-facts", *(f"dose-{name}" for name in PAIRS))
NAMES = (*PAIRS, *DOSES, "statements", "questions", "neutral", "tones", "corpus")


def _load(name: str) -> list[dict[str, Any]]:
    text = (data_dir() / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_committed_files_are_fresh(tmp_path: Path) -> None:
    write_datasets(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES)
    for name in NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (data_dir() / f"{name}.jsonl").read_bytes(), name


@pytest.mark.parametrize("name", ["statements", "questions", *PAIRS])
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


def test_an_answer_comes_first_and_again_in_its_sentence() -> None:
    for topic in world_topics():
        for fact in topic.facts:
            first, sentence = reply(fact, fact.answer).split(". ", 1)
            assert first.lower() == fact.answer.lower()
            assert sentence == put(topic.statements[0], fact.subject, fact.answer)
