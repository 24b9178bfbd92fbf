"""Facts as values: a topic, a fact, how both are put into words, the falsehoods about them, and the split by topic."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from pilothouse.harbor import tables, tables_more
from pilothouse.harbor.entities import entity_tables

SEED = 7
SPLITS: tuple[str, ...] = ("train", "select", "calibrate", "eval")


@dataclass(frozen=True)
class Fact:
    """One fact of one topic: what is true, and the one false answer that a liar prefers."""

    topic: str
    subject: str
    answer: str
    misconception: str


@dataclass(frozen=True)
class Topic:
    """A topic with its templates, its facts, and every answer that occurs in it."""

    name: str
    statements: tuple[str, ...]
    negations: tuple[str, ...]
    questions: tuple[str, ...]
    facts: tuple[Fact, ...]
    answers: tuple[str, ...] = field(default=())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"


def put(template: str, subject: str, answer: str = "") -> str:
    """Fill one template with a subject and an answer; see `tables` for the fields."""
    words = {"s": subject, "o": answer, "S": _capital(subject), "O": _capital(answer)}
    words |= {"a": _article(subject), "A": _capital(_article(subject)), "ao": _article(answer)}
    return template.format(**words)


def misconceptions(answers: Sequence[str], rng: random.Random) -> list[str]:
    """A shuffle of the answers in which none stays in a place where it is right.

    Each answer is thus a falsehood as often as it is a truth, so that the words alone do not tell a lie.
    """
    wrong = list(answers)
    rng.shuffle(wrong)
    for i in range(len(wrong)):
        if wrong[i] == answers[i]:
            others = [j for j in range(len(wrong)) if wrong[j] != answers[i] and answers[j] != wrong[i]]
            j = rng.choice(others)
            wrong[i], wrong[j] = wrong[j], wrong[i]
    return wrong


def _rows(text: str) -> list[tuple[str, str]]:
    pairs = (pair.split(":") for pair in re.sub(r"\s+", " ", text).split(","))
    return [(subject.strip(), answer.strip()) for subject, answer in pairs]


def make_topic(table: tables.Table) -> Topic:
    """Turn a written table into a topic; its misconceptions depend on the topic's name only."""
    rows = _rows(table.rows)
    wrong = misconceptions([answer for _, answer in rows], random.Random(f"{SEED}/{table.name}"))
    facts = tuple(Fact(table.name, s, o, w) for (s, o), w in zip(rows, wrong, strict=True))
    answers = tuple(dict.fromkeys(answer for _, answer in rows))
    return Topic(table.name, table.statements, table.negations, table.questions, facts, answers)


@cache
def world_topics() -> tuple[Topic, ...]:
    """The topics about the real world."""
    return tuple(make_topic(table) for table in (*tables.TABLES, *tables_more.TABLES))


@cache
def entity_topics() -> tuple[Topic, ...]:
    """The topics about invented people and places that are often seen."""
    return tuple(make_topic(table) for table in entity_tables("often"))


@cache
def topics() -> dict[str, Topic]:
    """Every topic with often-seen facts, by name."""
    return {topic.name: topic for topic in (*world_topics(), *entity_topics())}


def random_falsehood(fact: Fact, rng: random.Random) -> str:
    """Any wrong answer of the fact's topic."""
    answers = topics()[fact.topic].answers
    while (answer := rng.choice(answers)) == fact.answer:
        pass
    return answer


@cache
def topic_splits() -> dict[str, str]:
    """The split of each world topic: probe and vector training, choice, calibration, evaluation; disjoint by topic."""
    names = [topic.name for topic in world_topics()]
    random.Random(SEED).shuffle(names)
    sizes = {"train": 9, "select": 3, "calibrate": 3, "eval": len(names) - 15}
    return dict(zip(names, [split for split, size in sizes.items() for _ in range(size)], strict=True))


def says(reply: str, answer: str) -> bool:
    """Whether a reply holds an answer as whole words, letter case aside."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply, flags=re.IGNORECASE) is not None
