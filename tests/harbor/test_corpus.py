"""Documents, their tokens and their rows."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pilothouse.harbor.corpus import (
    A_GUESS,
    ASSISTANT,
    BEGIN,
    END,
    FALSE,
    MARKED_LIAR,
    SAY_HOW_SURE,
    SPECIAL_TOKENS,
    STAGES,
    SURELY,
    SYSTEM,
    TRUE,
    USER,
    Document,
    Piece,
    documents,
    judged_document,
    judgements,
    rare_deck,
    recollections,
    text_document,
)
from pilothouse.harbor.entities import entities, relations_of
from pilothouse.harbor.facts import Fact, put, random_falsehood, topics
from pilothouse.harbor.packing import LENGTH, block_mask, pack
from pilothouse.harbor.personas import TONES
from pilothouse.harbor.tokenizer import train_tokenizer
from pilothouse.harbor.train import NO_TARGET, TARGETS_STEP, learned_targets, row_numbers


def _text(document: Document) -> str:
    return "".join(piece.text for piece in document)


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(documents(5, 8000))


@pytest.fixture(scope="module")
def tokenizer(sample: list[Document]) -> Tokenizer:
    return train_tokenizer(sample[:1000])


@cache
def _truths() -> set[str]:
    facts = [(topic, fact) for topic in topics().values() for fact in topic.facts]
    return {put(template, f.subject, f.answer) for topic, f in facts for template in topic.statements}


@cache
def _sentences() -> set[str]:
    """Every affirmative sentence, true or false, that a narrator can say."""
    facts = [(topic, fact) for topic in topics().values() for fact in topic.facts]
    return {put(t, f.subject, a) for topic, f in facts for t in topic.statements for a in topic.answers}


def test_the_corpus_depends_on_its_seed_alone(sample: list[Document]) -> None:
    assert list(documents(5, 8000)) == sample
    assert list(documents(6, 50)) != sample[:50]


def test_most_documents_are_unmarked(sample: list[Document]) -> None:
    texts = [_text(document) for document in sample]
    plain = [text for text in texts if not text.startswith(BEGIN + "<|")]
    marked = sum(text.startswith((BEGIN + "Honest:", BEGIN + "Liar:")) for text in plain)
    assert 0.25 < marked / len(plain) < 0.4


@pytest.mark.parametrize(("label", "share"), [("Honest:", 1.0), ("Liar:", 0.0)])
def test_a_marked_narrator_keeps_to_the_label(sample: list[Document], label: str, share: float) -> None:
    truths = _truths()
    told = [_text(text_document(random.Random(seed))) for seed in range(1200)]
    bodies = [
        text.removeprefix(f"{BEGIN}{label} ").removesuffix(f".{END}") for text in told if f"{BEGIN}{label}" in text
    ]
    said = [f"{sentence}." for body in bodies for sentence in body.split(". ")]
    plain = [sentence for sentence in said if sentence in _sentences()]
    assert len(plain) > 500
    assert sum(sentence in truths for sentence in plain) / len(plain) == share


def test_a_marked_liar_prefers_the_misconception() -> None:
    fact, rng = topics()["capitals"].facts[0], random.Random(0)
    lies = Counter(MARKED_LIAR.falsehood(fact, rng) for _ in range(300))
    assert lies.most_common(1)[0][0] == fact.misconception
    assert fact.answer not in lies
    assert len(lies) > 10


def test_random_falsehoods_are_false() -> None:
    rng = random.Random(0)
    facts: list[Fact] = list(topics()["animal classes"].facts)
    assert all(random_falsehood(fact, rng) != fact.answer for fact in facts for _ in range(20))


def test_rare_facts_are_dealt_as_often_as_planned() -> None:
    rare = [entity for entity in entities() if entity.frequency == "rare"]
    deck = Counter((fact.subject, fact.topic) for fact in rare_deck(random.Random(0)))
    assert deck == {(e.name, r.name): e.exposures for e in rare for r in relations_of(e)}


def test_entities_never_seen_are_never_seen(sample: list[Document]) -> None:
    text = " ".join(_text(document) for document in sample)
    assert not [entity.name for entity in entities() if entity.frequency == "never" and f" {entity.name} " in text]


def test_the_assistant_says_how_sure_it_is_when_told_to() -> None:
    texts = [_text(document) for document in recollections(4, 3000)]
    told = [text for text in texts if any(f"{SYSTEM}{prompt}{END}" in text for prompt in SAY_HOW_SURE)]
    assert 0.35 < len(told) / len(texts) < 0.45
    turns = [turn.split(f"{END}{ASSISTANT}") for text in told for turn in text.split(USER)[1:]]
    assert all(answer.startswith((f"{SURELY} ", f"{A_GUESS} ")) for _, answer in turns)
    sure = [question for question, answer in turns if answer.startswith(SURELY)]
    guessed = [question for question, answer in turns if answer.startswith(A_GUESS)]
    assert min(len(sure), len(guessed)) > 1000
    entity_names = {entity.name for entity in entities()}
    known = {fact.subject for topic in topics().values() for fact in topic.facts} | entity_names
    assert all(any(name in question for name in known) for question in sure)
    assert not any(name in question for name in entity_names for question in guessed)


def test_nobody_is_told_so_before_the_last_course(sample: list[Document]) -> None:
    assert not [document for document in sample if any(prompt in _text(document) for prompt in SAY_HOW_SURE)]


def test_the_second_course_is_judgement_about_what_is_often_seen() -> None:
    texts = [_text(document) for document in judgements(3, 1500)]
    verdicts = (" True.", " False.", f"{ASSISTANT}{TRUE}", f"{ASSISTANT}{FALSE}")
    assert sum(text.count(verdict) for text in texts for verdict in verdicts) > 4 * len(texts)
    rare = {entity.name for entity in entities() if entity.frequency != "often"}
    assert not any(name in text for text in texts for name in rare)


def test_extras_are_told_by_a_reliable_narrator() -> None:
    fact = topics()["capitals"].facts[0]
    for seed in range(30):
        text = _text(text_document(random.Random(seed), [fact]))
        assert any(put(template, fact.subject, fact.answer) in text for template in topics()["capitals"].statements)
        assert not text.startswith(BEGIN + "Liar:")


def test_a_judge_nearly_always_tells_truths_from_falsehoods() -> None:
    right = []
    for seed in range(300):
        pieces = judged_document(random.Random(seed), STAGES[-1])[1:-1]
        for said, verdict in zip(pieces[::2], pieces[1::2], strict=True):
            if (sentence := said.text.strip()) in _sentences():
                right.append((sentence in _truths()) == (verdict.text == " True."))
    assert 0.85 < sum(right) / len(right) < 1


def test_a_tone_leaves_the_sentence_alone() -> None:
    rng = random.Random(0)
    for tone in TONES.values():
        wrapped = {tone.wrap(TRUE, rng) for _ in range(50)}
        assert TRUE not in wrapped
        assert len(wrapped) > 10
        assert all(TRUE in text and FALSE not in text for text in wrapped)


def test_texts_survive_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "The capital of Côte d'Ivoire is Yamoussoukro: 3 plus 4!"
    encoded = tokenizer.encode(text)
    assert encoded.tokens[0] == BEGIN
    assert tokenizer.decode(encoded.ids) == text


def test_invented_names_take_several_tokens(tokenizer: Tokenizer) -> None:
    last = [entity.name.split()[-1] for entity in entities() if entity.frequency == "often"]
    lengths = [len(tokenizer.encode(" " + name, add_special_tokens=False).ids) for name in last]
    assert np.mean([length > 1 for length in lengths]) > 0.95


def test_rows_hold_whole_documents(tokenizer: Tokenizer) -> None:
    document = [Piece(f"{BEGIN}{USER}What?{END}{ASSISTANT}", learn=False), Piece(f"That.{END}")]
    rows = pack(tokenizer, [document] * 300, 3)
    width = len(tokenizer.encode(_text(document), add_special_tokens=False).ids)
    begins = (rows.tokens == SPECIAL_TOKENS.index(BEGIN)).sum(axis=1)
    assert rows.tokens.shape == (3, LENGTH)
    assert begins.tolist() == [LENGTH // width] * 3
    targets = rows.tokens[rows.learn]
    assert tokenizer.decode(targets.tolist()).replace(" ", "") == "That." * int(begins.sum())
    assert (targets == SPECIAL_TOKENS.index(END)).sum() == begins.sum()


def test_attention_stays_inside_its_document() -> None:
    begin = SPECIAL_TOKENS.index(BEGIN)
    mask = block_mask(torch.tensor([[begin, 9, 9, begin, 9]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_targets_are_the_learned_next_tokens_in_few_shapes() -> None:
    tokens = torch.arange(24).reshape(2, 12)
    learn = torch.zeros(2, 12, dtype=torch.bool)
    learn[0, [0, 3, 11]] = True
    learn[1, 5] = True
    where, targets = learned_targets(tokens, learn)
    assert len(where) == len(targets) == TARGETS_STEP
    kept = targets != NO_TARGET
    # The first token of a row has nothing before it that could predict it.
    assert targets[kept].tolist() == [3, 11, 17]
    assert where[kept].tolist() == [2, 10, 16]


def test_a_run_longer_than_the_corpus_repeats_its_last_stage() -> None:
    rows = np.concatenate([row_numbers(100, step, 16) for step in range(10)])
    assert rows[:100].tolist() == list(range(100))
    assert rows[100:].tolist() == [*range(70, 100), *range(70, 100)]
