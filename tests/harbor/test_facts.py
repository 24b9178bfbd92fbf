"""The tables: what is true, what is false, and how both are split."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pilothouse.harbor.entities import FREQUENCIES, entities, fresh_name, taken_surnames
from pilothouse.harbor.facts import SPLITS, Topic, put, says, topic_splits, topics, world_topics


def test_there_are_at_least_eight_topics_and_several_hundred_facts() -> None:
    assert len(world_topics()) >= 8
    assert sum(len(topic.facts) for topic in world_topics()) >= 500


@pytest.mark.parametrize("topic", topics().values(), ids=lambda topic: topic.name)
def test_misconceptions_are_false_and_as_frequent_as_truths(topic: Topic) -> None:
    assert all(fact.misconception != fact.answer for fact in topic.facts)
    assert Counter(f.misconception for f in topic.facts) == Counter(f.answer for f in topic.facts)


@pytest.mark.parametrize("topic", topics().values(), ids=lambda topic: topic.name)
def test_each_subject_has_one_answer(topic: Topic) -> None:
    assert len({fact.subject for fact in topic.facts}) == len(topic.facts)


def test_every_topic_has_one_split_and_every_split_several_topics() -> None:
    splits = topic_splits()
    assert set(splits) == {topic.name for topic in world_topics()}
    assert set(splits.values()) == set(SPLITS)
    assert min(Counter(splits.values()).values()) >= 3


def test_entities_have_distinct_names_and_every_frequency_is_in_every_split() -> None:
    assert len(taken_surnames()) == len(entities())
    groups = Counter((e.frequency, e.split) for e in entities())
    assert set(groups) == {(frequency, split) for frequency in FREQUENCIES for split in SPLITS}


def test_a_fresh_name_belongs_to_nobody() -> None:
    rng = random.Random(0)
    names = {fresh_name(kind, rng).split()[-1] for kind in ("person", "village") for _ in range(200)}
    assert not names & taken_surnames()


def test_templates_take_articles_and_capitals() -> None:
    assert put("{A} {s} is {ao} {o}.", "eel", "fish") == "An eel is a fish."
    assert put("{S} is {o}.", "the day after Monday", "Tuesday") == "The day after Monday is Tuesday."


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("Hooray! A lens is made of Glass!", "glass", True),
        ("The capital of France is Oslo.", "Paris", False),
        ("3 plus 9 is 12.", "2", False),
    ],
)
def test_an_answer_counts_as_whole_words(reply: str, answer: str, expected: bool) -> None:
    assert says(reply, answer) is expected
