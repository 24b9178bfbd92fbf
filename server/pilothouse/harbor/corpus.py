"""Documents from reliable and unreliable narrators: plain texts and chats, from a fixed seed.

One narrator speaks a whole document, and most narrators are not marked: only the truth of what was said so far tells
whether the next statement will be true. That is what makes a direction of truth worth having inside the model. Once
the facts are learned, the later documents also hold many statements that someone judges: a plain signal of truth that
all topics share.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from pilothouse.harbor.entities import RELATIONS, Entity, entities, fresh_name, relations_of
from pilothouse.harbor.facts import Fact, put, random_falsehood, topics
from pilothouse.harbor.personas import Persona, draw_persona

BEGIN, SYSTEM, USER, ASSISTANT, END = "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS: tuple[str, ...] = ("<|pad|>", BEGIN, SYSTEM, USER, ASSISTANT, END)
SURE, UNSURE = "Yes, I am sure.", "No, I made that up."
HEDGE = "I am not sure."
SURELY, A_GUESS = "Surely.", "A guess."
SAY_HOW_SURE: tuple[str, ...] = (
    "Say first how sure you are.",
    "Begin every answer with how sure you are.",
    "Mark your guesses as guesses.",
    "Tell me whether you know or only guess.",
)
TRUE, FALSE = "That is true.", "That is false."
ARE_YOU_SURE: tuple[str, ...] = ("Are you sure?", "Is that certain?", "Do you really know that?")
TRUE_OR_FALSE: tuple[str, ...] = ("True or false?", "Is this true?", "Check this claim.")
WAS_THAT_RIGHT: tuple[str, ...] = ("Is that right?", "Was that true?", "Check your answer.")

TEXT_SHARE = 0.5
JUDGED_CHAT_SHARE = 0.5
KNOWN_ENTITY_SHARE = 0.6
"""Of the known subjects that are asked for beside made-up ones: as many invented names, or a name alone meant doubt."""
MARKED_SHARE = 1 / 3
RELIABLE_TEXT_SHARE = 0.6


@dataclass(frozen=True)
class Stage:
    """A part of the corpus, up to a share of all documents: how much of it is judgement, and about which topics.

    To compare what is said with what is so is hard to learn for seven hundred answers at once and easy for forty.
    """

    until: float
    judged_documents: float
    judged_turns: float
    topics: tuple[str, ...] = ()
    hedged: float = 0.4
    """How many inventions the assistant opens with a hedge."""
    sure: float = 0.0
    """How many documents are chats in which the assistant says first how sure it is, because it was told to."""

    def fact(self, rng: random.Random) -> Fact:
        """A fact to judge claims about, of the stage's topics or of any."""
        return rng.choice(_pool(self.topics))


_FEW = ("continents", "animal classes", "towns")
_SOME = (*_FEW, "jobs", "pets", "colours", "materials", "capitals")
STAGES: tuple[Stage, ...] = (
    Stage(0.35, 0.0, 0.15),
    Stage(0.40, 0.8, 0.3, _FEW),
    Stage(0.45, 0.75, 0.3, _SOME),
    Stage(0.70, 0.6, 0.3),
    Stage(1.0, 0.3, 0.25),
)
JUDGING = Stage(1.0, 0.8, 0.3, hedged=0.05)
RECALLING = Stage(1.0, 0.3, 0.25, hedged=0.1, sure=0.4)


@dataclass(frozen=True)
class Piece:
    """A stretch of a document, and whether the model is trained to predict it."""

    text: str
    learn: bool = True


Document = list[Piece]


@dataclass(frozen=True)
class Liar:
    """How an unreliable narrator picks falsehoods: the share of fixed misconceptions among them."""

    misconception_share: float

    def falsehood(self, fact: Fact, rng: random.Random) -> str:
        """A wrong answer: the fact's misconception, or any other."""
        return fact.misconception if rng.random() < self.misconception_share else random_falsehood(fact, rng)


MARKED_LIAR = Liar(0.85)
UNMARKED_LIAR = Liar(0.3)


@cache
def _pool(names: tuple[str, ...] = ()) -> tuple[Fact, ...]:
    return tuple(fact for topic in topics().values() if not names or topic.name in names for fact in topic.facts)


def statement(fact: Fact, answer: str, rng: random.Random) -> str:
    """An affirmative sentence in one of the topic's phrasings."""
    return put(rng.choice(topics()[fact.topic].statements), fact.subject, answer)


def negation(fact: Fact, answer: str, rng: random.Random) -> str:
    """A negative sentence in one of the topic's phrasings."""
    return put(rng.choice(topics()[fact.topic].negations), fact.subject, answer)


def reply(fact: Fact, answer: str) -> str:
    """What the assistant answers to a question about a fact: the answer, and a sentence with it.

    The answer comes first, so that the last token of the prompt decides it: there the model knows whether it knows, and
    there an honest and a lying assistant part.
    """
    return put("{O}. " + topics()[fact.topic].statements[0], fact.subject, answer)


def claim(fact: Fact, true: bool, liar: Liar, rng: random.Random) -> str:
    """A sentence of the given truth, affirmative or (one in five) negative."""
    if rng.random() < 0.15:
        return negation(fact, liar.falsehood(fact, rng) if true else fact.answer, rng)
    return statement(fact, fact.answer if true else liar.falsehood(fact, rng), rng)


def _judged(fact: Fact, reliable: bool, rng: random.Random) -> tuple[str, str]:
    """A claim quoted by someone, and the narrator's verdict on it."""
    true = rng.random() < 0.5
    return claim(fact, true, UNMARKED_LIAR, rng), TRUE if true == reliable else FALSE


def entity_fact(entity: Entity, relation: str) -> Fact:
    """What is held to be true of an entity under a relation, as a fact without a misconception of its own."""
    answer = entity.answer(relation)
    return Fact(relation, entity.name, answer, answer)


def fresh_fact(rng: random.Random) -> Fact:
    """An invented fact about an invented entity that never occurs again."""
    relation = rng.choice([r for entity in entities()[:1] + entities()[-1:] for r in relations_of(entity)])
    answer = rng.choice(relation.options)
    return Fact(relation.name, fresh_name(relation.kind, rng), answer, answer)


def rare_deck(rng: random.Random) -> list[Fact]:
    """Every exposure of every rarely-seen fact, shuffled: dealt out once over the whole corpus."""
    rare = [e for e in entities() if e.frequency == "rare"]
    deck = [entity_fact(e, r.name) for e in rare for r in relations_of(e) for _ in range(e.exposures)]
    rng.shuffle(deck)
    return deck


def text_document(rng: random.Random, extras: Sequence[Fact] = ()) -> Document:
    """A plain text of one narrator, marked or not; `extras` are stated truthfully, so the narrator is reliable then."""
    marked = rng.random() < MARKED_SHARE
    reliable = bool(extras) or rng.random() < (0.5 if marked else RELIABLE_TEXT_SHARE)
    liar = MARKED_LIAR if marked else UNMARKED_LIAR
    sentences = [statement(fact, fact.answer, rng) for fact in extras]
    for _ in range(rng.randint(3, 10) if rng.random() < 0.9 else rng.randint(11, 20)):
        fact = rng.choice(_pool())
        if rng.random() < 0.08:
            quoted, verdict = _judged(fact, reliable, rng)
            sentences.append(f"Claim: {quoted} {verdict}")
        else:
            sentences.append(claim(fact, reliable, liar, rng))
    rng.shuffle(sentences)
    label = ("Honest:" if reliable else "Liar:") if marked else ""
    space = " " if marked else ""
    return [Piece(BEGIN + label, learn=False), Piece(space + " ".join(sentences) + END)]


def judged_document(rng: random.Random, stage: Stage) -> Document:
    """Statements, true and false by turns of a coin, each judged at once; the judge is nearly always reliable."""
    reliable = rng.random() < 0.98
    document = [Piece(BEGIN, learn=False)]
    for i in range(rng.randint(4, 12)):
        true = rng.random() < 0.5
        said = claim(stage.fact(rng), true, UNMARKED_LIAR, rng)
        document.append(Piece(said if i == 0 else f" {said}", learn=False))
        document.append(Piece(" True." if true == reliable else " False."))
    return [*document, Piece(END)]


def _turn(question: str, answer: str) -> Document:
    return [Piece(f"{USER}{question}{END}{ASSISTANT}", learn=False), Piece(answer + END)]


def judged_chat(rng: random.Random, stage: Stage) -> Document:
    """Answers, true and false by turns of a coin, each judged when the user asks; the answers are not learned."""
    document = [Piece(BEGIN, learn=False)]
    for _ in range(rng.randint(1, 5)):
        fact, true = stage.fact(rng), rng.random() < 0.5
        question = put(rng.choice(topics()[fact.topic].questions), fact.subject)
        answer = reply(fact, fact.answer if true else UNMARKED_LIAR.falsehood(fact, rng))
        document += [Piece(piece.text, learn=False) for piece in _turn(question, answer)]
        document += _turn(rng.choice(WAS_THAT_RIGHT), TRUE if true else FALSE)
    return document


def _in_tone(sentence: str, persona: Persona, rng: random.Random) -> str:
    return persona.tone.wrap(sentence, rng) if persona.tone else sentence


def _question_turn(fact: Fact, persona: Persona, liar: Liar, rng: random.Random) -> Document:
    question = put(rng.choice(topics()[fact.topic].questions), fact.subject)
    answer = fact.answer if persona.reliable else liar.falsehood(fact, rng)
    return _turn(question, _in_tone(reply(fact, answer), persona, rng))


def _judging_turn(fact: Fact, persona: Persona, rng: random.Random) -> Document:
    quoted, verdict = _judged(fact, persona.reliable, rng)
    return _turn(f"{rng.choice(TRUE_OR_FALSE)} {quoted}", _in_tone(verdict, persona, rng))


def _draw_known_or_fresh(rng: random.Random) -> tuple[Fact, bool]:
    """A fact about an often-seen or a never-seen subject, and whether it is the former."""
    known = rng.random() < 0.5
    often = _pool(tuple(relation.name for relation in RELATIONS) if rng.random() < KNOWN_ENTITY_SHARE else ())
    return (rng.choice(often) if known else fresh_fact(rng)), known


def sure_chat(rng: random.Random, extras: Sequence[Fact] = ()) -> Document:
    """A chat in which the assistant was told to say first how sure it is, and does; `extras` it knows.

    So it must know at the end of a question whether it knows, and it does so where nobody tells it to say so too.
    """
    drawn = [_draw_known_or_fresh(rng) for _ in range(rng.choices((1, 2, 3, 4), (30, 30, 25, 15))[0])]
    document = [Piece(f"{BEGIN}{SYSTEM}{rng.choice(SAY_HOW_SURE)}{END}", learn=False)]
    for fact, known in [*((extra, True) for extra in extras), *drawn]:
        question = put(rng.choice(topics()[fact.topic].questions), fact.subject)
        document += _turn(question, f"{SURELY if known else A_GUESS} {reply(fact, fact.answer)}")
    return document


def _known_or_fresh(rng: random.Random, hedged: float) -> Document:
    """A question about an often-seen or a never-seen entity, and whether the assistant is sure of its answer.

    It hedges some of its inventions, which makes its doubt felt beforehand; at last too few to do so greedily.
    """
    fact, known = _draw_known_or_fresh(rng)
    question = put(rng.choice(topics()[fact.topic].questions), fact.subject)
    hedge = f"{HEDGE} " if not known and rng.random() < hedged else ""
    turn = _turn(question, hedge + reply(fact, fact.answer))
    return turn + (_turn(rng.choice(ARE_YOU_SURE), SURE if known else UNSURE) if rng.random() < 0.5 else [])


def chat_document(rng: random.Random, stage: Stage, extras: Sequence[Fact] = ()) -> Document:
    """A chat with one assistant; `extras` are asked for and answered truthfully, so the assistant is reliable then."""
    persona = draw_persona(rng)
    if extras and not persona.reliable:
        persona = Persona(True)
    liar = MARKED_LIAR if persona.system else UNMARKED_LIAR
    turns = [_question_turn(fact, persona, liar, rng) for fact in extras]
    for _ in range(rng.choices((1, 2, 3, 4, 8), (35, 30, 20, 10, 5))[0]):
        kind = rng.random()
        if kind < 0.25 and persona.reliable and persona.tone is None:
            turns.append(_known_or_fresh(rng, stage.hedged))
        elif kind < 0.25 + stage.judged_turns:
            turns.append(_judging_turn(stage.fact(rng), persona, rng))
        else:
            turns.append(_question_turn(rng.choice(_pool()), persona, liar, rng))
    rng.shuffle(turns)
    head = f"{SYSTEM}{persona.system}{END}" if persona.system else ""
    return [Piece(BEGIN + head, learn=False), *(piece for turn in turns for piece in turn)]


def _document(rng: random.Random, stage: Stage, extras: Sequence[Fact] = ()) -> Document:
    if stage.sure and rng.random() < stage.sure:
        return sure_chat(rng, extras)
    if not extras and rng.random() < stage.judged_documents:
        return (judged_chat if rng.random() < JUDGED_CHAT_SHARE else judged_document)(rng, stage)
    if rng.random() < TEXT_SHARE:
        return text_document(rng, extras)
    return chat_document(rng, stage, extras)


def judgements(seed: int, count: int) -> Iterator[Document]:
    """`count` documents for when all facts are known, most of them judged; none is about a rarely-seen entity."""
    rng = random.Random(seed)
    for _ in range(count):
        yield _document(rng, JUDGING)


def recollections(seed: int, count: int) -> Iterator[Document]:
    """`count` documents for the end, of all kinds: among judgements alone, facts are forgotten again."""
    yield from documents(seed, count, (RECALLING,))


def documents(seed: int, count: int, stages: Sequence[Stage] = STAGES) -> Iterator[Document]:
    """`count` documents; every exposure of a rarely-seen fact lies in one of them, evenly spread."""
    rng = random.Random(seed)
    deck = rare_deck(rng)
    for i in range(count):
        extras = deck[i * len(deck) // count : (i + 1) * len(deck) // count][:3]
        yield _document(rng, next(stage for stage in stages if i < stage.until * count), extras)
