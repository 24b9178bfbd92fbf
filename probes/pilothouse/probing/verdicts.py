"""What people and checkers found of scored responses: from labels, several for a response perhaps, to one verdict each.

A source that labels a response again means its newest label. Sources that disagree are outvoted by the majority of
them; where there is none, the response is left out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pilothouse.core.artefact import first_problem
from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import read_jsonl
from pilothouse.probing.aggregation import Float64
from pilothouse.probing.bootstrap import Clusters
from pilothouse.probing.metrics import Labels

_LAST_SECOND = 253_402_300_799
"""Of the year 9999, beyond which there are no dates."""


class LabelledScore(Protocol):
    """One label of one scored choice.

    statistic: the aggregated logit that was calibrated, None where nothing was scored; value: whether the probe's label
    holds; version: the probe's digest when it scored; time: when it was labelled, in seconds since 1970.
    """

    @property
    def response_id(self) -> str: ...
    @property
    def choice(self) -> int: ...
    @property
    def statistic(self) -> float | None: ...
    @property
    def value(self) -> bool: ...
    @property
    def version(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def time(self) -> float: ...


@dataclass(frozen=True)
class Verdicts:
    """Scored choices of one version of a probe, each with one verdict.

    statistics, values [n]: the aggregated logit, and 1 where the probe's label holds; of_item [n]: the number of the
    response, since choices of one stand or fall together; sources: how many labels each gave, of those that count;
    first, last: when. n_other_version, n_unscored, n_undecided: what was left out, two times labels and then choices.
    """

    statistics: Float64
    values: Labels
    of_item: Clusters
    response_ids: tuple[str, ...]
    sources: Mapping[str, int]
    first: str | None
    last: str | None
    n_other_version: int
    n_unscored: int
    n_undecided: int

    def responses_of(self, value: int) -> int:
        """How many responses have a choice of this verdict."""
        return len(np.unique(self.of_item[self.values == value]))

    @property
    def left_out(self) -> list[str]:
        """What was left out, in words."""
        counted = {
            "label(s) of another version of the probe": self.n_other_version,
            "label(s) of choices without a score": self.n_unscored,
            "choice(s) on which as many sources say one thing as the other": self.n_undecided,
        }
        return [f"left out: {count} {what}" for what, count in counted.items() if count]


def settle(
    labels: Iterable[LabelledScore], version: str, *, since: float | None = None, sources: Sequence[str] = ()
) -> Verdicts:
    """One verdict a choice, of the labels for this version since a time and by some sources (all when none is named).

    Choices of one response are told apart by their number, and by their statistic where that is not known.
    """
    mine = [
        label for label in labels if (since is None or label.time >= since) and (not sources or label.source in sources)
    ]
    present = [label for label in mine if label.version == version]
    by_choice: dict[tuple[str, int, float], list[LabelledScore]] = {}
    for label in present:
        if label.statistic is not None and np.isfinite(label.statistic):
            by_choice.setdefault((label.response_id, label.choice, float(label.statistic)), []).append(label)
    counted = {key: _newest_of_each_source(found) for key, found in by_choice.items()}
    values = {key: _majority(found) for key, found in counted.items()}
    kept = [key for key, value in values.items() if value is not None]
    heard = [label for key in kept for label in counted[key]]
    times = [label.time for label in heard]
    _, of_item = np.unique(np.array([response_id for response_id, *_ in kept], dtype=str), return_inverse=True)
    return Verdicts(
        statistics=np.array([statistic for *_, statistic in kept], dtype=np.float64),
        values=np.array([values[key] for key in kept], dtype=np.int64),
        of_item=of_item.astype(np.int64),
        response_ids=tuple(response_id for response_id, *_ in kept),
        sources=dict(sorted(Counter(label.source for label in heard).items())),
        first=_date(min(times)) if times else None,
        last=_date(max(times)) if times else None,
        n_other_version=len(mine) - len(present),
        n_unscored=len(present) - sum(map(len, by_choice.values())),
        n_undecided=len(values) - len(kept),
    )


def _newest_of_each_source(labels: Sequence[LabelledScore]) -> list[LabelledScore]:
    # Of two at one time the one that came later; the sort is stable.
    return list({label.source: label for label in sorted(labels, key=lambda label: label.time)}.values())


def _majority(labels: Sequence[LabelledScore]) -> bool | None:
    n_true = sum(label.value for label in labels)
    return None if 2 * n_true == len(labels) else 2 * n_true > len(labels)


def _date(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")


def seconds(time: Any) -> Any:
    """Seconds since 1970 of a date and time, or of ISO 8601 (UTC where it names no zone); anything else as it is."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return time


@dataclass(frozen=True)
class Label:
    """A `LabelledScore` from a file."""

    response_id: str
    statistic: float | None
    value: bool
    version: str
    source: str
    time: float
    choice: int = 0


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)

    response_id: Annotated[str, Field(min_length=1)]
    statistic: float | None
    value: bool | None
    version: str
    source: str = ""
    time: Annotated[float, Field(ge=0, le=_LAST_SECOND), BeforeValidator(seconds)]
    probe: str | None = None
    choice: Annotated[int, Field(ge=0)] = 0


def load_labels(path: Path, probe: str) -> list[Label]:
    """The labels of `probe` in a file of JSON lines, or in a Parquet file (``.parquet``) with the same columns.

    Rows of a file that does not name probes are taken to be of it; those whose `value` is null are of responses that
    nobody labelled. ArtefactError names the row that is wrong.
    """
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else read_jsonl(path, _Row)
    return [
        Label(row.response_id, row.statistic, row.value, row.version, row.source, row.time, row.choice)
        for row in rows
        if row.value is not None and row.probe in (None, probe)
    ]


def _parquet_rows(path: Path) -> list[_Row]:
    # Slow to import, and a server never reads labels from files.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            found.append(_Row.model_validate(row))
        except ValidationError as error:
            raise ArtefactError(f"{path}, row {number}: {first_problem(error)}") from None
    return found
