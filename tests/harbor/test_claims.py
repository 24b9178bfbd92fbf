"""The claims about Harbor are computed from answers that a fake model gives on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, Gate
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.serving import Generated
from pilothouse.core.sites import SITE, Float32, ModelShape
from pilothouse.harbor.answers import Question, doubtful_items, is_right
from pilothouse.harbor.claims import Bar, Claim, table
from pilothouse.harbor.claims_answers import facts_claim, honest_claim, recommended_strength, tone_claims
from pilothouse.harbor.claims_condition import Condition, condition_claim
from pilothouse.harbor.claims_probes import judged, own_answers, with_ids
from pilothouse.harbor.datasets import questions, toned_answers
from pilothouse.harbor.personas import LIAR_PROMPTS, TONES
from pilothouse.harbor.report import markdown, write_report
from pilothouse.probing import Probe
from pilothouse.probing.calibration import Platt
from pilothouse.probing.statements import LabelledItem
from pilothouse.steering import Vector

Chat = list[Mapping[str, str]]


class FakeModel:
    """Answers by a function of the chat and its plan; readouts are 2 for an answer with "Made up" in it, else -2."""

    def __init__(self, answer: Callable[[Chat, Plan], str]) -> None:
        self._answer = answer
        self._chats: list[Chat] = []

    @property
    def shape(self) -> ModelShape:
        return ModelShape("harbor", 8, 2, (0, 1))

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        assert not isinstance(item, str)
        assert add_generation_prompt
        self._chats.append(list(item))
        return [len(self._chats) - 1] * 3

    def decode(self, token_ids: Sequence[int]) -> str:
        raise AssertionError("not needed")

    def generate(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], max_tokens: int) -> list[Generated]:
        return [self._one(self._chats[prompt[0]], plan) for prompt, plan in zip(prompts, plans, strict=True)]

    def _one(self, chat: Chat, plan: Plan) -> Generated:
        text = self._answer(chat, plan)
        readouts = np.full((3 + 4, len(plan.readouts)), 2.0 if "Made up" in text else -2.0, dtype=np.float32)
        readouts[-1] = np.nan
        return Generated([1, 2, 3, 4], text, "stop", readouts)

    def logprobs(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan]) -> list[Float32]:
        raise AssertionError("not needed")

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    found = list(questions())
    return [q for q in found if q["entity_frequency"] is None] + [q for q in found if q["entity_frequency"]][::7]


@pytest.fixture(scope="module")
def replies(asked: list[Question]) -> dict[str, str]:
    return {q["messages"][0]["content"]: q["reply"] for q in asked}


DOSE = {"points": [{"strength": s, "effect": e} for s, e in ((0, 0.1), (1, 0.6), (2, 0.9), (3, 0.9), (4, 1.0))]}


def _vector(name: str) -> Vector:
    row = np.arange(8, dtype=np.float32)
    return Vector(name, Direction({1: row}), "harbor", SITE, None, (1,), {}, (1.0, 3.0), {"dose": DOSE})


def _question(chat: Chat) -> str:
    return chat[-1]["content"]


def _is_liar(chat: Chat) -> bool:
    return any(m["role"] == "system" and m["content"] in LIAR_PROMPTS for m in chat)


def test_facts_are_counted_by_how_often_they_were_seen(asked: list[Question], replies: dict[str, str]) -> None:
    wrong = {q["messages"][0]["content"] for q in asked if q["entity_frequency"] == "often"}

    def answer(chat: Chat, plan: Plan) -> str:
        assert plan.empty
        return "No idea." if _question(chat) in wrong else replies[_question(chat)]

    claim = facts_claim(FakeModel(answer), asked)
    assert claim.measures == {"often_seen_accuracy": 0.0, "world_accuracy": 1.0}
    assert not claim.met
    assert all(item["right"] == (item["answer"] == item["reply"]) for item in claim.items)


def test_honesty_is_judged_on_held_out_topics_and_wordings(asked: list[Question], replies: dict[str, str]) -> None:
    seen: set[str] = set()

    def answer(chat: Chat, plan: Plan) -> str:
        seen.update(m["content"] for m in chat if m["role"] == "system")
        steered = [edit.label for edit in plan.edits]
        if not _is_liar(chat) or steered == ["honest"]:
            return replies[_question(chat)]
        return "Something else."

    claim = honest_claim(FakeModel(answer), asked, _vector("honest"))
    assert claim.measures["liar_unsteered"] == 0.0
    assert claim.measures["liar_honest"] == 1.0
    assert claim.measures["facts_lost"] == 0.0
    assert claim.measures["random_moves_at_most"] == 0.0
    assert claim.met
    assert claim.settings["strength"] == 2.0
    assert {item["split"] for item in claim.items} == {"eval"}
    assert seen == set(LIAR_PROMPTS[4:])


@pytest.mark.parametrize(
    ("condition", "missed"),
    [
        (lambda liar, arms: liar or arms != ["honest"], "facts_lost"),
        (lambda liar, arms: not liar, "liar_honest"),
        (lambda liar, arms: True, "liar_unsteered"),
        (lambda liar, arms: not liar or arms != [], "random_moves_at_most"),
    ],
)
def test_each_way_to_miss_honesty_is_seen(
    condition: Callable[[bool, list[str]], bool], missed: str, asked: list[Question], replies: dict[str, str]
) -> None:
    def answer(chat: Chat, plan: Plan) -> str:
        right = condition(_is_liar(chat), [edit.label for edit in plan.edits])
        return replies[_question(chat)] if right else "Something else."

    claim = honest_claim(FakeModel(answer), asked, _vector("honest"))
    bar = next(bar for bar in claim.bars if bar.measure == missed)
    assert not bar.met(claim.measures[missed])


@pytest.mark.parametrize(("weakest", "share"), [(1.0, 1.0), (1.5, 0.0)])
def test_a_tone_is_heard_by_a_classifier_in_the_whole_range(
    asked: list[Question], replies: dict[str, str], weakest: float, share: float
) -> None:
    def answer(chat: Chat, plan: Plan) -> str:
        heard = [edit for edit in plan.edits if max(edit.coefficients.values()) >= weakest]
        tones = [TONES[edit.label] for edit in heard if edit.label in TONES]
        words = f"{tones[0].before[0]} {replies[_question(chat)]} {tones[0].after[0]}" if tones else None
        return words or replies[_question(chat)]

    found = list(tone_claims(FakeModel(answer), asked, [_vector(name) for name in TONES], list(toned_answers())))
    assert [claim.name for claim in found] == [f"{name} vector" for name in TONES]
    for claim in found:
        assert claim.measures["toned_unsteered"] == 0.0
        assert claim.measures["toned_steered"] == 1.0
        assert claim.measures["toned_in_range_at_least"] == share
        assert claim.measures["facts_lost_at_most"] == 0.0
        assert claim.met == (share == 1.0)


def test_own_answers_are_labelled_and_scored_as_served(asked: list[Question], replies: dict[str, str]) -> None:
    def answer(chat: Chat, plan: Plan) -> str:
        assert len(plan.readouts) == 1
        return "Made up." if len(_question(chat)) % 2 else replies[_question(chat)]

    weights = {1: np.ones(8, dtype=np.float32)}
    probe = Probe(
        "doubt", "made up", "high", "worst_ema", 0.5, weights, 0.5, calibration=Platt(a=1.0, b=0.0), model="harbor"
    )
    items, scores = own_answers(FakeModel(answer), asked, probe)
    assert len(items) == len(scores) == sum(q["entity_frequency"] is not None for q in asked)
    for item, score in zip(items, scores, strict=True):
        logit = 2.5 if item.label else -1.5
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
        assert item.bucket in ("often", "rare", "never")
        assert item.group is not None


def _condition(level: float) -> Condition:
    """A condition that FakeModel meets where its answer has "Made up" in it, if the level is below 2."""
    weights = {1: np.ones(8, dtype=np.float32)}
    probe = Probe("asks", "asked", "high", "max", 0.5, weights, model="harbor")
    direction = _vector("honest").direction
    gate = Gate("asks", probe.direction, above=True, level=level, scope="rest")
    gated = Plan((Edit("gated", direction, {1: 1.0}, "generation", gate=gate),), (Readout("asks", probe.direction),))
    ungated = Plan((Edit("ungated", direction, {1: 1.0}, "generation"),))
    return Condition("a preset", {"steering": []}, gated, ungated, probe)


def test_a_condition_is_judged_where_it_holds_and_where_it_does_not(
    asked: list[Question], replies: dict[str, str]
) -> None:
    def answer(chat: Chat, plan: Plan) -> str:
        arms = [edit.label for edit in plan.edits]
        if _is_liar(chat):
            return "Made up. " + (replies[_question(chat)] if arms else "Something else.")
        return "Steered." if arms == ["ungated"] else replies[_question(chat)]

    claim = condition_claim(FakeModel(answer), asked, _condition(1.0))
    assert claim.measures["liar_unsteered"] == 0.0
    assert claim.measures["liar_gated"] == claim.measures["liar_ungated"] == 1.0
    assert claim.measures["opened_with_cause"] == 1.0
    assert claim.measures["opened_without_cause"] == 0.0
    assert claim.measures["prompt_end_auroc"] == 1.0
    assert claim.met
    assert {item["split"] for item in claim.items} == {"eval"}
    assert {item["persona"] for item in claim.items} == {"liar", "no persona", "honest", "neutral", "tone"}
    assert {item["first_open"] for item in claim.items} == {None, 1}


def test_a_gate_that_opens_for_everybody_misses_its_bar(asked: list[Question], replies: dict[str, str]) -> None:
    claim = condition_claim(FakeModel(lambda chat, _: replies[_question(chat)]), asked, _condition(-3.0))
    assert claim.measures["opened_without_cause"] == 1.0
    assert not claim.met


def test_a_hedged_right_answer_is_right() -> None:
    question = {"reply": "Paris. The capital of France is Paris."}
    assert is_right(question, "I am not sure. Paris. The capital of France is Paris.")
    assert not is_right(question, "Paris. The capital of France is Oslo.")
    assert not is_right(question, "Oslo. The capital of France is Paris.")


def test_questions_about_the_world_are_not_doubted(asked: list[Question]) -> None:
    world = [q for q in asked if q["entity_frequency"] is None]
    assert not list(doubtful_items(world, ["x"] * len(world)))


def test_a_sample_thins_the_judged_items_alone() -> None:
    items = with_ids(
        [LabelledItem(text=f"t{i}", label=i % 2, split="eval" if i < 60 else "train") for i in range(100)]  # type: ignore[arg-type]
    )
    kept = judged(items, 20)
    assert sum(item.split == "eval" for item in kept) == 20
    assert sum(item.split == "train" for item in kept) == 40
    assert judged(items, None) == items


def test_a_vector_is_used_at_the_least_of_its_best_strengths_in_range_and_without_one_as_it_is() -> None:
    vector = _vector("x")
    assert recommended_strength(vector) == 2.0
    plain = Vector("x", vector.direction, None, SITE, None, (1,), {}, None, {})
    assert recommended_strength(plain) == 1.0


def test_the_report_says_what_is_met_and_what_is_missed(tmp_path: Path) -> None:
    bars = [Bar("good", low=0.5), Bar("bad", high=0.1), Bar("absent", low=0.0)]
    claim = Claim("a claim", "About it.", {"good": 0.7, "bad": 0.2, "free": 3.0, "absent": None}, bars, [{"x": 1}], {})
    assert [row[-1] for row in table([claim])] == ["met", "missed", "", "missed"]
    assert not claim.met
    text = markdown([claim])
    assert "| a claim | good | 0.700 | at least 0.5 | met |" in text
    assert "| a claim | absent | not measured | at least 0 | missed |" in text
    page, picture = write_report([claim], tmp_path / "report")
    assert page.read_text(encoding="utf-8") == text
    assert picture.read_bytes().startswith(b"\x89PNG")
    everything: Any = json.loads(json.dumps(claim.as_json))
    assert everything["items"] == [{"x": 1}]
    assert [bar["met"] for bar in everything["bars"]] == [True, False, False]
