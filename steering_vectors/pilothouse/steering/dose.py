"""How much of a vector is good: effect against capability over a range of strengths, with random vectors as control."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import SteeredModel
from pilothouse.steering.dose_bench import Bench, mean
from pilothouse.steering.dose_range import Effect, Recommendation, recommend
from pilothouse.steering.dose_setup import (
    DoseData,
    DoseProbe,
    DoseSettings,
    chosen_layers,
    control_direction,
    dose_key,
)
from pilothouse.steering.dose_work import Measured, Record, WorkFile
from pilothouse.steering.reading import Progress
from pilothouse.steering.vector import Vector


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
        return mean([p.effect for p in self.points if p.strength == strength and p.control is not None])

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

    Strength 0 is always among them. `progress` is called with items done and in all, of all strengths and controls.
    ArtefactError for a vector or probe that does not fit the model, empty data, strengths that are not finite, or texts
    that are too short.
    """
    layers = chosen_layers(vector, settings)
    _check(model, vector, data, settings, layers)
    bench = Bench(model, data, settings, probes)
    todo = _todo(vector, settings, layers)
    records, done = list[Record](), 0

    def tell(piece: Measured) -> None:
        nonlocal done
        done += len(piece)
        if progress:
            progress(done, len(todo) * len(bench))

    for strength, number, direction in todo:
        tell(work.get(strength, number))
        for piece in bench.rest(direction, layers, strength, work.get(strength, number)):
            work.put(strength, number, piece)
            tell(piece)
        whole = work.get(strength, number)
        records.append({"strength": strength, "control": number, **bench.summary(whole)})
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


def _todo(vector: Vector, settings: DoseSettings, layers: tuple[int, ...]) -> list[tuple[float, int | None, Direction]]:
    """Strength, number of the control (None: the vector), and direction of each measurement, in their order."""
    arms: list[tuple[int | None, Direction]] = [(None, vector.direction)]
    arms += [(n, control_direction(vector.direction, layers, settings.seed, n)) for n in range(settings.controls)]
    # Small strengths first: an interrupted run then holds those that are most likely of use.
    strengths = sorted({0.0, *map(float, settings.strengths)}, key=lambda s: (abs(s), s))
    return [(s, number, direction) for s in strengths for number, direction in arms if s != 0 or number is None]


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
