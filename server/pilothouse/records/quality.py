"""What labels say of probes: the pairs to calibrate on, and the counts behind precision, recall and calibration.

In the counts a choice that several sources labelled counts once, with what most of them said; where as many say the one
as the other, it is left out. Recalibration decides likewise (probing/verdicts.py).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Engine, Select, case, func, literal, select

from pilothouse.probing.quality import BINS, ScoreBin
from pilothouse.records.database import reading
from pilothouse.records.rows import storable
from pilothouse.records.schema import labels, responses, scores

_PAIRS: tuple[tuple[bool, bool], ...] = ((True, True), (True, False), (False, True), (False, False))


class Labelled(NamedTuple):
    """A scored choice and what one source found of it. statistic: the aggregated logit that `score` calibrates; value:
    whether that which the probe scores is so; time: of the label."""

    response_id: str
    choice: int
    statistic: float | None
    score: float
    flagged: bool
    version: str
    value: bool
    source: str
    time: float


@dataclass
class LabelCounts:
    """Of one version of a probe on one model. counts: labelled choices by (flagged, value); bins: by score."""

    model: str
    probe: str
    version: str
    counts: dict[tuple[bool, bool], int] = field(default_factory=lambda: dict.fromkeys(_PAIRS, 0))
    bins: list[ScoreBin] = field(default_factory=lambda: [ScoreBin(0, 0.0, 0)] * BINS)


def read_labelled(
    engine: Engine, probe: str, version: str | None = None, since: float | None = None, model: str | None = None
) -> list[Labelled]:
    """All labels of choices that `probe` scored, by the time of their requests. since: the earliest label, in seconds
    since 1970; DatabaseError."""
    columns = (
        responses.c.response_id,
        scores.c.choice,
        scores.c.statistic,
        scores.c.score,
        scores.c.flagged,
        scores.c.version,
        labels.c.value,
        labels.c.source,
        labels.c.time,
    )
    query = (
        select(*columns)
        .join_from(labels, scores, _same_choice(labels))
        .join(responses, responses.c.id == labels.c.record)
        .where(scores.c.score.is_not(None), scores.c.probe == storable(probe))
        .order_by(responses.c.time, responses.c.id, scores.c.choice, labels.c.time, labels.c.source)
    )
    for column, wanted in ((scores.c.version, version), (responses.c.model, model)):
        if wanted is not None:
            query = query.where(column == storable(wanted))
    if since is not None:
        query = query.where(labels.c.time >= since)
    with reading(engine) as connection:
        return [Labelled(*row) for row in connection.execute(query)]


def read_quality(engine: Engine, since: float | None = None) -> list[LabelCounts]:
    """Of every probe, version and model that has labels, in order; added up in the database. DatabaseError."""
    said = _verdicts().subquery()
    number = sum((case((scores.c.score >= i / BINS, 1), else_=0) for i in range(1, BINS)), literal(0)).label("bin")
    by = (responses.c.model, scores.c.probe, scores.c.version, scores.c.flagged, said.c.value)
    query = (
        select(*by, number, func.count().label("n"), func.sum(scores.c.score).label("score_sum"))
        .join_from(said, scores, _same_choice(said))
        .join(responses, responses.c.id == said.c.record)
        .where(scores.c.score.is_not(None))
        .group_by(*by, "bin")
    )
    if since is not None:
        query = query.where(responses.c.time >= since)
    found: dict[tuple[str, str, str], LabelCounts] = {}
    with reading(engine) as connection:
        for model, probe, version, flagged, value, i, n, score_sum in connection.execute(query):
            one = found.setdefault((model, probe, version), LabelCounts(model, probe, version))
            one.counts[flagged, value] += n
            before = one.bins[i]
            one.bins[i] = ScoreBin(before.n + n, before.total + score_sum, before.n_holds + n * value)
    return [found[key] for key in sorted(found)]


def _verdicts() -> Select[Any]:
    """Of each labelled choice what most sources say."""
    of_choice = (labels.c.record, labels.c.choice, labels.c.probe)
    n_true = func.sum(case((labels.c.value, 1), else_=0))
    majority = case((2 * n_true > func.count(), literal(True)), else_=literal(False))
    return select(*of_choice, majority.label("value")).group_by(*of_choice).having(2 * n_true != func.count())


def _same_choice(said: Any) -> Any:
    return (scores.c.record == said.c.record) & (scores.c.choice == said.c.choice) & (scores.c.probe == said.c.probe)
