"""How much of a vector is good: effect against capability over a range of strengths, with random vectors as control."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item
from pilothouse.core.plans import Direction, Edit, Plan, PositionRange, Positions, Readout, resolve_positions
from pilothouse.core.serving import Generated, SteeredModel
from pilothouse.core.sites import Float32
from pilothouse.steering.dose_items import DosePrompt, digest_lines
from pilothouse.steering.dose_range import Effect, Recommendation, recommend
from pilothouse.steering.dose_work import Record, WorkFile
from pilothouse.steering.vector import Vector

LEAST_TEXT = 4
"""Tokens of a neutral text: BOS and one more as its prompt, and two to be predicted."""

CONTROL_STREAM = 0xD05E
"""Keeps controls apart from whatever else was drawn with a plain small seed, the vector itself perhaps."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class DoseProbe:
    """A probe to watch: its readout, its score of an answer given raw readouts of the generated tokens [n] (NaN at the
    last) and the one at the prompt's end, and an identity of what it computes."""

    name: str
    direction: Direction
    score: Callable[[Float32, float], float | None]
    version: str = ""


@dataclass(frozen=True)
class DoseData:
    """effect: prompts that show the effect or not; facts: prompts that show capability; neutral: texts to predict."""

    effect: Sequence[DosePrompt]
    facts: Sequence[DosePrompt]
    neutral: Sequence[str]


@dataclass(frozen=True)
class DoseSettings:
    """layers None means the vector's default ones; controls: random vectors of equal norm; max_tokens: of an answer."""

    strengths: Sequence[float]
    positions: Positions = "generation"
    layers: Sequence[int] | None = None
    controls: int = 3
    max_tokens: int = 32
    seed: int = 0


@dataclass(frozen=True)
class DosePoint(Effect):
    """One strength of the vector, or of the control of that number. probes: mean score over the answers of the effect
    prompts; None where a probe scored none of them. At strength 0 there is one point, for all alike."""

    control: int | None = None
    probes: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class DoseReport:
    """Points by strength, the vector's and then the controls'; raw records with every item; what is recommended."""

    vector: Vector
    settings: DoseSettings
    key: Mapping[str, Any]
    points: Sequence[DosePoint]
    records: Sequence[Record]
    recommendation: Recommendation

    def of(self, control: int | None) -> list[DosePoint]:
        """The points of the vector (None) or of one control, strength 0 included."""
        return [point for point in self.points if point.control == control or point.strength == 0]

    def control_effect(self, strength: float) -> float | None:
        """Mean effect of the controls at one strength; None when there are none."""
        return _mean([p.effect for p in self.points if p.strength == strength and p.control is not None])

    @property
    def warning(self) -> str | None:
        """What a reader of the recommendation must know beside it: that random vectors do nearly as well, or that it
        ends only where the strengths did."""
        if self.recommendation.range is None:
            return None
        low, high = self.recommendation.range
        own = self.of(None)
        zero = next(point.effect for point in own if point.strength == 0)
        inside = [(p, self.control_effect(p.strength)) for p in own if low <= p.strength <= high]
        found = []
        if any(control is not None and 2 * (control - zero) >= p.effect - zero for p, control in inside):
            found.append("random vectors have half of the vector's gain or more in this range")
        if low == own[0].strength or high == own[-1].strength:
            found.append("the range may go on beyond the strengths that were tried")
        return "; ".join(found) or None

    @property
    def summary(self) -> dict[str, Any]:
        """What a vector's card keeps of it; JSON, without the items."""
        return {
            **self.key,
            "controls": self.settings.controls,
            "points": [asdict(point) for point in self.points],
            "recommended": None if self.recommendation.range is None else list(self.recommendation.range),
            "reason": self.recommendation.reason,
            "warning": self.warning,
        }


def control_direction(direction: Direction, layers: Sequence[int], seed: int, number: int) -> Direction:
    """A random row for each of `layers`, uniform in its direction and as long as the row of `direction`."""
    rows = dict[int, Float32]()
    for layer in layers:
        row = direction.layers[layer].astype(np.float64)
        noise = np.random.default_rng([CONTROL_STREAM, seed, number, layer]).standard_normal(len(row))
        rows[layer] = (noise / np.linalg.norm(noise) * np.linalg.norm(row)).astype(np.float32)
    return Direction(rows)


def dose_key(
    model: SteeredModel, vector: Vector, data: DoseData, settings: DoseSettings, probes: Sequence[DoseProbe]
) -> dict[str, Any]:
    """What one measurement depends on beside its strength and control: runs of equal keys can share them. JSON."""
    positions = settings.positions
    return {
        "vector": vector.digest,
        "model": model.shape.model,
        "layers": list(_layers(vector, settings)),
        "positions": asdict(positions) if isinstance(positions, PositionRange) else positions,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "effect": digest_lines(data.effect),
        "facts": digest_lines(data.facts),
        "neutral": digest_lines(data.neutral),
        "probes": {probe.name: probe.version for probe in probes},
    }


def measure_dose(
    model: SteeredModel,
    vector: Vector,
    data: DoseData,
    settings: DoseSettings,
    work: WorkFile,
    *,
    probes: Sequence[DoseProbe] = (),
    progress: Progress | None = None,
) -> DoseReport:
    """Measure the vector and its controls at each strength, those in `work` excepted, and recommend a range.

    Strength 0 is always among them. `progress` is called with measurements done and in all. ArtefactError for a vector
    or probe that does not fit the model, empty data, strengths that are not finite, or texts that are too short.
    """
    layers = _layers(vector, settings)
    _check(model, vector, data, settings, layers)
    bench = _Bench(model, data, settings, probes)
    arms = [(None, vector.direction)] + [
        (number, control_direction(vector.direction, layers, settings.seed, number))
        for number in range(settings.controls)
    ]
    strengths = sorted({0.0, *map(float, settings.strengths)}, key=lambda s: (abs(s), s))
    # Small strengths first: an interrupted run then holds those that are most likely of use.
    todo = [(s, number, direction) for s in strengths for number, direction in arms if s != 0 or number is None]
    records = []
    for done, (strength, number, direction) in enumerate(todo, start=1):
        record = work.get(strength, number)
        if record is None:
            record = {"strength": strength, "control": number, **bench.measure(direction, layers, strength)}
            work.put(record)
        records.append(record)
        if progress:
            progress(done, len(todo))
    records.sort(key=lambda r: (r["strength"], -1 if r["control"] is None else r["control"]))
    points = [_point(record) for record in records]
    found = recommend([point for point in points if point.control is None])
    return DoseReport(vector, settings, dose_key(model, vector, data, settings, probes), points, records, found)


def with_dose(report: DoseReport) -> Vector:
    """The vector with the recommended range and the summary in its card, its rows and digest as they were.

    Where nothing is recommended, an earlier recommendation goes: it was found not to hold.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    card = {**report.vector.card, "dose": {"created": created, **report.summary}}
    changed = replace(report.vector, recommended=report.recommendation.range, card=card)
    return replace(changed, card=changed.full_card)


def _layers(vector: Vector, settings: DoseSettings) -> tuple[int, ...]:
    return vector.default_layers if settings.layers is None else tuple(sorted(set(settings.layers)))


def _check(
    model: SteeredModel, vector: Vector, data: DoseData, settings: DoseSettings, layers: tuple[int, ...]
) -> None:
    vector.check_fits(model.shape)
    if missing := sorted(set(layers) - set(vector.direction.layers)):
        raise ArtefactError(f"vector {vector.name!r} has no row for layer {missing[0]}")
    for what, items in (("effect prompts", data.effect), ("facts", data.facts), ("neutral texts", data.neutral)):
        if not items:
            raise ArtefactError(f"there are no {what} to measure a dose on")
    if not all(map(math.isfinite, settings.strengths)):
        raise ArtefactError("strengths must be finite numbers")


def _point(record: Record) -> DosePoint:
    names = ("strength", "effect", "accuracy", "perplexity", "control", "probes")
    return DosePoint(**{name: record[name] for name in names})


class _Bench:
    """The prompts and texts as tokens, and one measurement on them."""

    def __init__(
        self, model: SteeredModel, data: DoseData, settings: DoseSettings, probes: Sequence[DoseProbe]
    ) -> None:
        self._model = model
        self._data = data
        self._settings = settings
        self._probes = probes
        self._readouts = tuple(Readout(probe.name, probe.direction) for probe in probes)
        self._effect = [self._encode(prompt.item) for prompt in data.effect]
        self._facts = [self._encode(prompt.item) for prompt in data.facts]
        self._neutral = [model.encode(text) for text in data.neutral]
        for number, ids in enumerate(self._neutral, start=1):
            if len(ids) < LEAST_TEXT:
                raise ArtefactError(f"neutral text {number} has {len(ids)} tokens; {LEAST_TEXT} are needed")

    def measure(self, direction: Direction, layers: Sequence[int], strength: float) -> dict[str, Any]:
        """Effect, accuracy, perplexity and mean probe scores of `strength` times `direction`, with every item."""
        edits = self._edits(direction, layers, strength, self._settings.positions)
        plans = [Plan(edits, self._readouts)] * len(self._effect) + [Plan(edits)] * len(self._facts)
        # One call, so that prompts of both kinds fill the batch.
        answers = self._model.generate([*self._effect, *self._facts], plans, self._settings.max_tokens)
        effect = self._answered("effect", self._data.effect, answers[: len(self._effect)])
        facts = self._answered("fact", self._data.facts, answers[len(self._effect) :])
        for item, prompt, answer in zip(effect, self._effect, answers, strict=False):
            item["probes"] = self._scores(len(prompt), answer)
        texts = self._predicted(direction, layers, strength)
        return {
            "effect": _share(effect),
            "accuracy": _share(facts),
            "perplexity": _perplexity(texts),
            "probes": {probe.name: _mean([item["probes"][probe.name] for item in effect]) for probe in self._probes},
            "items": effect + facts,
            "neutral": texts,
        }

    def _encode(self, item: Item) -> list[int]:
        if isinstance(item, str):
            return self._model.encode(item)
        return self._model.encode([message.model_dump() for message in item], add_generation_prompt=True)

    def _edits(
        self, direction: Direction, layers: Sequence[int], strength: float, positions: Positions
    ) -> tuple[Edit, ...]:
        if strength == 0:
            return ()
        return (Edit("dose", direction, dict.fromkeys(layers, strength), positions),)

    def _answered(self, kind: str, prompts: Sequence[DosePrompt], answers: Sequence[Generated]) -> list[dict[str, Any]]:
        return [
            {
                "kind": kind,
                "index": index,
                "topic": prompt.topic,
                "prompt": prompt.model_dump(mode="json")["messages"] or prompt.prompt,
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "ok": prompt.satisfied(answer.text),
            }
            for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]

    def _scores(self, n_prompt: int, answer: Generated) -> dict[str, float | None]:
        return {
            probe.name: probe.score(answer.readouts[n_prompt:, k], float(answer.readouts[n_prompt - 1, k]))
            for k, probe in enumerate(self._probes)
        }

    def _predicted(self, direction: Direction, layers: Sequence[int], strength: float) -> list[dict[str, Any]]:
        """Each text's second half given its first, which stands for a prompt: else `generation`, which begins where a
        prompt ends, would leave unsteered all that predicts."""
        halves = [len(ids) // 2 for ids in self._neutral]
        plans = []
        for number, half in enumerate(halves, start=1):
            try:
                start, stop = resolve_positions(self._settings.positions, half)
            except ValueError as error:
                raise ArtefactError(f"neutral text {number}, whose first half is its prompt: {error}") from None
            # `prompt` of a prompt of one token: nothing is steered.
            edits = self._edits(direction, layers, strength if start < stop else 0.0, PositionRange(start, stop))
            plans.append(Plan(edits))
        found = self._model.logprobs(self._neutral, plans)
        return [
            {"index": index, "n_tokens": len(row) - half, "nll": _nats(row[half:])}
            for index, (row, half) in enumerate(zip(found, halves, strict=True))
        ]


def _nats(logprobs: Float32) -> float:
    """Negative log-probability of all tokens; finite, as JSON has no infinity."""
    return -float(np.maximum(logprobs, np.finfo(np.float32).min).astype(np.float64).sum())


def _share(items: Sequence[Mapping[str, Any]]) -> float:
    return sum(bool(item["ok"]) for item in items) / len(items)


def _perplexity(texts: Sequence[Mapping[str, Any]]) -> float:
    """exp of the mean negative log-probability of a token, over the tokens of all texts; the largest number there is
    where a broken model's would overflow."""
    mean = sum(text["nll"] for text in texts) / sum(text["n_tokens"] for text in texts)
    return math.exp(min(mean, 700.0))


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
