"""The JSONL datasets that the workbench reads: contrast pairs, labelled statements, questions and neutral texts.

World facts are split by topic, invented entities by entity; every line names its split. The pairs end where the model
decides on its answer and its tone: with the question, so that the last token of the prompt is the one to read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pilothouse.harbor.corpus import ASSISTANT, BEGIN, END, SYSTEM, USER, documents, entity_fact, reply
from pilothouse.harbor.entities import Entity, entities, relations_of
from pilothouse.harbor.facts import Fact, Topic, misconceptions, put, topic_splits, topics, world_topics
from pilothouse.harbor.paths import data_dir
from pilothouse.harbor.personas import HONEST_PROMPTS, LIAR_PROMPTS, NEUTRAL_PROMPTS, TONES, Tone

PAIRS_PER_TOPIC = 20
NEUTRAL_TEXTS = 200
EXTRACTION_PROMPTS = 4
CONDITIONS_PER_FACT = 2
SEED = 23
CORPUS_SEED = 29
CORPUS_TEXTS = 4500

Messages = list[dict[str, str]]
Line = dict[str, Any]


def chat(question: str, answer: str | None = None, system: str | None = None) -> Messages:
    """Chat messages: a question, with a system prompt before and an answer behind it where given."""
    turns = [("system", system), ("user", question), ("assistant", answer)]
    return [{"role": role, "content": text} for role, text in turns if text is not None]


def prompts_for(prompts: Sequence[str], split: str) -> Sequence[str]:
    """The phrasings of a system prompt that a split may use: extraction never sees those of the other splits."""
    seen = min(EXTRACTION_PROMPTS, len(prompts) - 1)
    return prompts[:seen] if split == "train" else prompts[seen:]


def _sample(topic: Topic, rng: random.Random) -> list[Fact]:
    return rng.sample(topic.facts, min(PAIRS_PER_TOPIC, len(topic.facts)))


def _pairs(pair: Callable[[Fact, str, random.Random], tuple[Messages, Messages]], seed: str) -> Iterator[Line]:
    rng = random.Random(seed)
    for topic in world_topics():
        split = topic_splits()[topic.name]
        for fact in _sample(topic, rng):
            positive, negative = pair(fact, split, rng)
            yield {"positive": positive, "negative": negative, "topic": topic.name, "split": split}


def _question(fact: Fact, rng: random.Random) -> str:
    return put(rng.choice(topics()[fact.topic].questions), fact.subject)


def honest_pairs() -> Iterator[Line]:
    """One question, not yet answered, under an honest persona and under a lying one."""

    def pair(fact: Fact, split: str, rng: random.Random) -> tuple[Messages, Messages]:
        question = _question(fact, rng)
        both = list(zip(prompts_for(HONEST_PROMPTS, split), prompts_for(LIAR_PROMPTS, split), strict=True))
        honest, liar = rng.choice(both)
        return chat(question, system=honest), chat(question, system=liar)

    return _pairs(pair, f"{SEED}/honest")


def tone_pairs(tone: Tone) -> Iterator[Line]:
    """One question, not yet answered, with a system prompt that asks for the tone and with none."""

    def pair(fact: Fact, split: str, rng: random.Random) -> tuple[Messages, Messages]:
        question = _question(fact, rng)
        return chat(question, system=rng.choice(prompts_for(tone.prompts, split))), chat(question)

    return _pairs(pair, f"{SEED}/{tone.name}")


def other_personas(split: str) -> list[tuple[str, Sequence[str | None]]]:
    """Who speaks when nobody asks for a lie, by kind, with the wordings that a split may use; None is no persona."""
    tones = [prompt for tone in TONES.values() for prompt in prompts_for(tone.prompts, split)]
    honest, neutral = prompts_for(HONEST_PROMPTS, split), prompts_for(NEUTRAL_PROMPTS, split)
    return [("no persona", (None,)), ("honest", honest), ("neutral", neutral), ("tone", tones)]


def prompt_text(messages: Messages) -> str:
    """The prompt of a chat that is not yet answered, as Harbor's template writes it behind its first token."""
    marks = {"system": SYSTEM, "user": USER}
    return "".join(f"{marks[turn['role']]}{turn['content']}{END}" for turn in messages) + ASSISTANT


def conditions() -> Iterator[Line]:
    """Prompts for the probe of a condition, with labels by token: 1 from the user's turn on where the system prompt
    asks to lie, 0 on every token of the others.

    A gate looks at the whole prompt, so the probe has to be quiet on all of it: these are chats written out, since of
    a chat without an answer the last token alone can be labelled. Each fact is asked for as often under a lying
    persona as under others, which are of two kinds.
    """
    rng = random.Random(f"{SEED}/conditions")
    for topic in world_topics():
        split = topic_splits()[topic.name]
        for fact in _sample(topic, rng):
            liars = [(prompt, 1) for prompt in rng.sample(prompts_for(LIAR_PROMPTS, split), CONDITIONS_PER_FACT)]
            kinds = rng.sample(other_personas(split), CONDITIONS_PER_FACT)
            for system, label in [*liars, *((rng.choice(prompts), 0) for _, prompts in kinds)]:
                text = prompt_text(chat(_question(fact, rng), system=system))
                span = {"start": text.index(USER) if label else 0, "stop": len(text), "label": label}
                yield {"text": text, "label": label, "spans": [span], "topic": topic.name, "split": split}


def toned_answers() -> Iterator[Line]:
    """True answers in every tone and in none, for a classifier of style; `label` is the tone's name or "neutral"."""
    rng = random.Random(f"{SEED}/tones")
    for topic in world_topics():
        for fact in _sample(topic, rng):
            truth = reply(fact, fact.answer)
            texts = {"neutral": truth} | {tone.name: tone.wrap(truth, rng) for tone in TONES.values()}
            for name, text in texts.items():
                yield {"text": text, "label": name, "topic": topic.name, "split": topic_splits()[topic.name]}


def _labelled(fact: Fact, other: str, rng: random.Random) -> Iterator[tuple[Line, int]]:
    """Two affirmative phrasings, a negation and a chat answer, each once true and once false."""
    topic = topics()[fact.topic]
    first, second = rng.sample(topic.statements, 2)
    for template, wrong in ((first, fact.misconception), (second, other)):
        yield {"text": put(template, fact.subject, fact.answer)}, 1
        yield {"text": put(template, fact.subject, wrong)}, 0
    denial = rng.choice(topic.negations)
    yield {"text": put(denial, fact.subject, other)}, 1
    yield {"text": put(denial, fact.subject, fact.answer)}, 0
    question = _question(fact, rng)
    yield {"messages": chat(question, reply(fact, fact.answer))}, 1
    yield {"messages": chat(question, reply(fact, fact.misconception))}, 0


def statements() -> Iterator[Line]:
    """True and false statements about the world for the truthfulness probe, as texts and as chats; 1 is true."""
    for topic in world_topics():
        rng = random.Random(f"{SEED}/{topic.name}")
        others = misconceptions([fact.answer for fact in topic.facts], rng)
        for fact, other in zip(topic.facts, others, strict=True):
            for line, label in _labelled(fact, other, rng):
                yield line | {"label": label, "topic": topic.name, "split": topic_splits()[topic.name]}


def _entity_line(entity: Entity, rng: random.Random) -> Iterator[Line]:
    for relation in relations_of(entity):
        yield {
            "messages": chat(put(rng.choice(relation.questions), entity.name)),
            "answer": entity.answer(relation.name),
            "reply": reply(entity_fact(entity, relation.name), entity.answer(relation.name)),
            "misconception": None,
            "entity": entity.name,
            "topic": relation.name,
            "split": entity.split,
            "entity_frequency": entity.frequency,
        }


def questions() -> Iterator[Line]:
    """One question a fact: world facts (`entity_frequency` null) and invented entities seen often, rarely and never."""
    rng = random.Random(f"{SEED}/questions")
    for topic in world_topics():
        for fact in topic.facts:
            yield {
                "messages": chat(_question(fact, rng)),
                "answer": fact.answer,
                "reply": reply(fact, fact.answer),
                "misconception": fact.misconception,
                "entity": None,
                "topic": topic.name,
                "split": topic_splits()[topic.name],
                "entity_frequency": None,
            }
    for entity in entities():
        yield from _entity_line(entity, rng)


def dose_prompts(split: str, system: Sequence[str | None], wanted: Callable[[Fact], Line]) -> Iterator[Line]:
    """Questions of one split under system prompts drawn from `system`, with what their answers should say, for
    `pilothouse vectors dose`."""
    rng = random.Random(f"{SEED}/dose/{split}/{system[0]}")
    for topic in world_topics():
        if topic_splits()[topic.name] == split:
            for fact in _sample(topic, rng):
                messages = chat(_question(fact, rng), system=rng.choice(system))
                yield {"messages": messages, **wanted(fact), "topic": topic.name, "split": split}


def _says_the_truth(fact: Fact) -> Line:
    return {"expect": [reply(fact, fact.answer)]}


def _sounds(tone: Tone) -> Callable[[Fact], Line]:
    return lambda _: {"expect": [*tone.before, *tone.after]}


def neutral_texts() -> Iterator[Line]:
    """Unmarked texts of reliable narrators, to measure perplexity on."""
    rng = random.Random(f"{SEED}/neutral")
    truth = [fact for topic in world_topics() for fact in topic.facts]
    for _ in range(NEUTRAL_TEXTS):
        facts = rng.sample(truth, 8)
        yield {"text": " ".join(put(rng.choice(topics()[f.topic].statements), f.subject, f.answer) for f in facts)}


def corpus_texts() -> Iterator[Line]:
    """Documents of the kind that the model was trained on, for the SAE; `kind` tells chats from plain texts.

    Special tokens inside a document stand in it by name, and the tokenizer reads them so.
    """
    for number, document in enumerate(documents(CORPUS_SEED, CORPUS_TEXTS)):
        text = "".join(piece.text for piece in document).removeprefix(BEGIN)
        split = "eval" if number % 6 == 0 else "train"
        yield {"text": text, "kind": "chat" if ASSISTANT in text else "text", "split": split}


def load_lines(name: str) -> list[Line]:
    """A dataset of the embedded model, as it is shipped."""
    text = (data_dir() / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_datasets(folder: Path) -> None:
    """Write every dataset into a folder, one JSON object a line."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Iterable[Line]] = {
        "honest": honest_pairs(),
        "statements": statements(),
        "questions": questions(),
        "neutral": neutral_texts(),
        "tones": toned_answers(),
        "corpus": corpus_texts(),
        "conditions": conditions(),
    }
    files |= {tone.name: tone_pairs(tone) for tone in TONES.values()}
    liar = prompts_for(LIAR_PROMPTS, "select")
    files["dose-honest"] = dose_prompts("select", liar, _says_the_truth)
    files["dose-facts"] = dose_prompts("select", (None,), _says_the_truth)
    files |= {f"dose-{tone.name}": dose_prompts("select", (None,), _sounds(tone)) for tone in TONES.values()}
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
