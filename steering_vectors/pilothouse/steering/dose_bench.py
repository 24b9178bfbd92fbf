"""One measurement of a dose: prompts answered and texts predicted by a model that is steered with some strength."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange, Positions
from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item
from pilothouse.core.plans import Plan, Readout, resolve_positions
from pilothouse.core.serving import Generated, SteeredModel
from pilothouse.core.sites import Float32
from pilothouse.steering.dose_items import DosePrompt
from pilothouse.steering.dose_setup import DoseData, DoseProbe, DoseSettings
from pilothouse.steering.dose_work import Measured, Record
from pilothouse.steering.pace import Pace

LEAST_TEXT = 4
"""Tokens of a neutral text: BOS and one more as its prompt, and two to be predicted."""

MOST_AT_ONCE = 1024


@dataclass(frozen=True)
class _Question:
    """A prompt with its tokens, of kind `effect` or `fact`, and its number in its file."""

    kind: str
    index: int
    prompt: DosePrompt
    token_ids: list[int]


@dataclass(frozen=True)
class _Text:
    """A neutral text as tokens: the first `half` stand for a prompt, and [start, stop) are the steered positions."""

    index: int
    token_ids: list[int]
    half: int
    start: int
    stop: int


class Bench:
    """The prompts and texts as tokens, and measurements on them. ArtefactError for texts that are too short."""

    def __init__(
        self, model: SteeredModel, data: DoseData, settings: DoseSettings, probes: Sequence[DoseProbe]
    ) -> None:
        self._model = model
        self._settings = settings
        self._probes = probes
        self._readouts = tuple(Readout(probe.name, probe.direction) for probe in probes)
        self._questions = [*self._asked("effect", data.effect), *self._asked("fact", data.facts)]
        self._texts = [self._text(index, text) for index, text in enumerate(data.neutral)]
        self._asking, self._predicting = Pace(MOST_AT_ONCE), Pace(MOST_AT_ONCE)

    def __len__(self) -> int:
        """Items of a whole measurement."""
        return len(self._questions) + len(self._texts)

    def rest(self, direction: Direction, layers: Sequence[int], strength: float, held: Measured) -> Iterator[Measured]:
        """What `held` lacks of the measurement of `strength` times `direction`, in pieces to be kept as they come."""
        n = len(held.items)
        while n < len(self._questions):
            questions = self._questions[n : n + self._asking.size]
            edits = _edits(direction, layers, strength, self._settings.positions)
            # A readout for those answers alone whose scores are reported.
            plans = [Plan(edits, self._readouts if q.kind == "effect" else ()) for q in questions]
            with self._asking.timed():
                answers = self._model.generate([q.token_ids for q in questions], plans, self._settings.max_tokens)
            yield Measured(items=[self._answered(*pair) for pair in zip(questions, answers, strict=True)])
            n += len(questions)
        n = len(held.neutral)
        while n < len(self._texts):
            texts = self._texts[n : n + self._predicting.size]
            plans = [_text_plan(direction, layers, strength, text) for text in texts]
            with self._predicting.timed():
                found = self._model.logprobs([text.token_ids for text in texts], plans)
            yield Measured(neutral=[_predicted(text, row) for text, row in zip(texts, found, strict=True)])
            n += len(texts)

    def summary(self, whole: Measured) -> Record:
        """Effect, accuracy, perplexity and mean probe scores of a whole measurement, with every item."""
        effect, facts = ([item for item in whole.items if item["kind"] == kind] for kind in ("effect", "fact"))
        return {
            "effect": _share(effect),
            "accuracy": _share(facts),
            "perplexity": _perplexity(whole.neutral),
            "probes": {probe.name: mean([item["probes"][probe.name] for item in effect]) for probe in self._probes},
            "items": whole.items,
            "neutral": whole.neutral,
        }

    def _asked(self, kind: str, prompts: Sequence[DosePrompt]) -> list[_Question]:
        return [_Question(kind, index, prompt, self._encode(prompt.item)) for index, prompt in enumerate(prompts)]

    def _encode(self, item: Item) -> list[int]:
        if isinstance(item, str):
            return self._model.encode(item)
        return self._model.encode([message.model_dump() for message in item], add_generation_prompt=True)

    def _text(self, index: int, text: str) -> _Text:
        """Its second half is predicted given the first, which stands for a prompt: else `generation`, which begins
        where a prompt ends, would leave unsteered all that predicts."""
        ids = self._model.encode(text)
        if len(ids) < LEAST_TEXT:
            raise ArtefactError(f"neutral text {index + 1} has {len(ids)} tokens; {LEAST_TEXT} are needed")
        half = len(ids) // 2
        try:
            return _Text(index, ids, half, *resolve_positions(self._settings.positions, half))
        except ValueError as error:
            raise ArtefactError(f"neutral text {index + 1}, whose first half is its prompt: {error}") from None

    def _answered(self, question: _Question, answer: Generated) -> Record:
        item = {
            "kind": question.kind,
            "index": question.index,
            "topic": question.prompt.topic,
            "prompt": question.prompt.model_dump(mode="json")["messages"] or question.prompt.prompt,
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "ok": question.prompt.satisfied(answer.text),
        }
        if question.kind == "effect":
            item["probes"] = self._scores(len(question.token_ids), answer)
        return item

    def _scores(self, n_prompt: int, answer: Generated) -> dict[str, float | None]:
        return {
            probe.name: probe.score(answer.readouts[n_prompt:, k], float(answer.readouts[n_prompt - 1, k]))
            for k, probe in enumerate(self._probes)
        }


def mean(scores: Sequence[float | None]) -> float | None:
    """Of those that are known; None when none is."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _edits(direction: Direction, layers: Sequence[int], strength: float, positions: Positions) -> tuple[Edit, ...]:
    if strength == 0:
        return ()
    return (Edit("dose", direction, dict.fromkeys(layers, strength), positions),)


def _text_plan(direction: Direction, layers: Sequence[int], strength: float, text: _Text) -> Plan:
    # `prompt` of a prompt of one token: nothing is steered.
    steered = strength if text.start < text.stop else 0.0
    return Plan(_edits(direction, layers, steered, PositionRange(text.start, text.stop)))


def _predicted(text: _Text, logprobs: Float32) -> Record:
    row = logprobs[text.half :]
    # Finite, as JSON has no infinity.
    nats = -float(np.maximum(row, np.finfo(np.float32).min).astype(np.float64).sum())
    return {"index": text.index, "n_tokens": len(row), "nll": nats}


def _share(items: Sequence[Mapping[str, Any]]) -> float:
    return sum(bool(item["ok"]) for item in items) / len(items)


def _perplexity(texts: Sequence[Mapping[str, Any]]) -> float:
    """exp of the mean negative log-probability of a token, over the tokens of all texts; the largest number there is
    where a broken model's would overflow."""
    nats = sum(text["nll"] for text in texts) / sum(text["n_tokens"] for text in texts)
    return math.exp(min(nats, 700.0))
