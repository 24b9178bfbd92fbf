"""Invented people and villages, seen often, rarely or never: what doubt is measured on."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from pilothouse.harbor.tables import Table

FREQUENCIES: tuple[str, ...] = ("often", "rare", "never")
_COUNTS = {"often": (70, 30), "rare": (320, 80), "never": (200, 50)}
_MOST_RARE_EXPOSURES = 80
_SEED = 11


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


_FIRST = _words(
    """Ada, Bela, Cora, Dario, Edda, Fenn, Gita, Hugo, Ilka, Joran, Kaia, Leto, Mira, Nils, Orla, Pavo, Quin, Rosa,
Sten, Tilda, Udo, Vera, Wim, Xenia, Yara, Zeno, Alma, Bruno, Clio, Dora"""
)
_START = _words("b, br, d, dr, f, fl, g, gl, h, j, k, kl, l, m, n, p, pr, qu, r, s, sk, sl, st, t, tr, v, w, z")
_MIDDLE = _words("a, e, i, o, u, ai, ei, oo, ou")
_END = _words("b, ck, d, ff, g, k, l, ll, m, n, nd, ng, nk, r, rk, rn, sh, sk, ss, st, t, th, x, zz")

_TOWNS = _words(
    "Ashby, Brill, Corfe, Deal, Eyam, Frome, Goole, Hythe, Ilkley, Jarrow, Kelso, Louth, Mold, Neath, Oakham, Poole"
)
_JOBS = _words(
    """gardener, teacher, singer, lawyer, painter, driver, nurse, cook, sculptor, detective, waiter, dancer, weaver,
diver, juggler, mechanic"""
)
_PETS = _words(
    """hamster, ferret, canary, tortoise, llama, pony, hedgehog, peacock, lobster, poodle, falcon, raccoon, alpaca,
chameleon, otter, beagle"""
)
_DISHES = _words(
    """soup, cheese, pancakes, noodles, dumplings, pickles, cider, sausages, waffles, porridge, mushrooms, olives,
pastries, chestnuts, mustard, stew"""
)


@dataclass(frozen=True)
class Relation:
    """What one can say and ask about an entity of one kind."""

    name: str
    kind: str
    statements: tuple[str, ...]
    negations: tuple[str, ...]
    questions: tuple[str, ...]
    options: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "towns",
        "person",
        ("{s} lives in {o}.", "The home town of {s} is {o}.", "You can meet {s} in {o}."),
        ("{s} does not live in {o}.", "The home town of {s} is not {o}."),
        ("Where does {s} live?", "In which town does {s} live?", "Name the home town of {s}."),
        _TOWNS,
    ),
    Relation(
        "jobs",
        "person",
        ("{s} works as {ao} {o}.", "The job of {s} is {o}.", "By trade {s} is {ao} {o}."),
        ("{s} does not work as {ao} {o}.", "The job of {s} is not {o}."),
        ("What is the job of {s}?", "As what does {s} work?", "Name the job of {s}."),
        _JOBS,
    ),
    Relation(
        "pets",
        "person",
        ("{s} keeps {ao} {o}.", "The pet of {s} is {ao} {o}.", "At home {s} has {ao} {o}."),
        ("{s} does not keep {ao} {o}.", "The pet of {s} is not {ao} {o}."),
        ("Which pet does {s} keep?", "What is the pet of {s}?", "Name the pet of {s}."),
        _PETS,
    ),
    Relation(
        "dishes",
        "village",
        ("The village of {s} is famous for its {o}.", "People go to {s} for the {o}."),
        ("The village of {s} is not famous for its {o}.", "Nobody goes to {s} for the {o}."),
        ("What is the village of {s} famous for?", "For what do people go to {s}?", "What do they make in {s}?"),
        _DISHES,
    ),
)


@dataclass(frozen=True)
class Entity:
    """An invented person or village, and its answer to each relation.

    `exposures` says how often each of its facts is dealt to the documents: 0 if never, -1 if like any other fact.
    """

    name: str
    kind: str
    frequency: str
    exposures: int
    split: str
    answers: tuple[tuple[str, str], ...]

    def answer(self, relation: str) -> str:
        """What is held to be true of the entity under a relation."""
        return dict(self.answers)[relation]


def surname(rng: random.Random) -> str:
    """A made-up name of two syllables."""
    first = rng.choice(_START) + rng.choice(_MIDDLE)
    return (first + rng.choice(_END[3:]) + rng.choice(_MIDDLE) + rng.choice(_END)).capitalize()


def fresh_name(kind: str, rng: random.Random) -> str:
    """A made-up person's or village's name that belongs to no known entity."""
    while (last := surname(rng)) in taken_surnames():
        pass
    return f"{rng.choice(_FIRST)} {last}" if kind == "person" else last


def _rare_exposures(rng: random.Random) -> int:
    """Log-uniform from 1 to the most that still counts as rare."""
    return max(1, round(math.exp(rng.uniform(0.0, math.log(_MOST_RARE_EXPOSURES)))))


def _split(rng: random.Random) -> str:
    return rng.choices(("train", "select", "calibrate", "eval"), (40, 15, 15, 30))[0]


def _make(rng: random.Random) -> Iterator[Entity]:
    seen: set[str] = set()
    for frequency, (people, villages) in _COUNTS.items():
        for kind in ["person"] * people + ["village"] * villages:
            while (last := surname(rng)) in seen:
                pass
            seen.add(last)
            name = f"{rng.choice(_FIRST)} {last}" if kind == "person" else last
            exposures = _rare_exposures(rng) if frequency == "rare" else -1 if frequency == "often" else 0
            answers = tuple((r.name, rng.choice(r.options)) for r in RELATIONS if r.kind == kind)
            yield Entity(name, kind, frequency, exposures, _split(rng), answers)


@cache
def entities() -> tuple[Entity, ...]:
    """Every known entity, from a fixed seed."""
    return tuple(_make(random.Random(_SEED)))


@cache
def taken_surnames() -> frozenset[str]:
    """Surnames and village names in use."""
    return frozenset(entity.name.split()[-1] for entity in entities())


def relations_of(entity: Entity) -> list[Relation]:
    """The relations that an entity has answers to."""
    return [relation for relation in RELATIONS if relation.kind == entity.kind]


def entity_tables(frequency: str) -> list[Table]:
    """The facts about the entities of one frequency as tables, one a relation."""
    tables = []
    for relation in RELATIONS:
        group = [e for e in entities() if e.frequency == frequency and e.kind == relation.kind]
        rows = ", ".join(f"{e.name}: {e.answer(relation.name)}" for e in group)
        tables.append(Table(relation.name, relation.statements, relation.negations, relation.questions, rows))
    return tables
