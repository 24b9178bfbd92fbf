"""What is claimed of Harbor: measures with their bars, and every item that they were computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Item = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """A measure must be at least `low` and at most `high`, where given."""

    measure: str
    low: float | None = None
    high: float | None = None

    def met(self, value: float | None) -> bool:
        """Whether a measured value is inside; nothing measured is outside."""
        if value is None:
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        parts = [f"at least {self.low:g}"] if self.low is not None else []
        return " and ".join(parts + ([f"at most {self.high:g}"] if self.high is not None else []))


@dataclass(frozen=True)
class Claim:
    """One claim: its measures by name, the bars on some of them, and the raw items, from which anyone can compute them.

    about: what was measured and how, in a sentence or two; settings: strengths, layers, seeds.
    """

    name: str
    about: str
    measures: Mapping[str, float | None]
    bars: Sequence[Bar]
    items: Sequence[Item]
    settings: Mapping[str, Any]

    @property
    def met(self) -> bool:
        """Whether every bar is met."""
        return all(bar.met(self.measures.get(bar.measure)) for bar in self.bars)

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it; the raw items last."""
        return {
            "name": self.name,
            "about": self.about,
            "met": self.met,
            "measures": dict(self.measures),
            "bars": [{**asdict(bar), "met": bar.met(self.measures.get(bar.measure))} for bar in self.bars],
            "settings": dict(self.settings),
            "items": list(self.items),
        }


def share(items: Sequence[Item], key: str) -> float | None:
    """The share of items whose `key` is true; None of no items."""
    return sum(bool(item[key]) for item in items) / len(items) if items else None


def table(claims: Sequence[Claim]) -> list[tuple[str, str, str, str, str]]:
    """Rows (claim, measure, value, bar, verdict) of every measure; those without a bar have neither bar nor verdict."""
    rows = []
    for claim in claims:
        bars = {bar.measure: bar for bar in claim.bars}
        for measure, value in claim.measures.items():
            bar = bars.get(measure)
            shown = "not measured" if value is None else f"{value:.3f}"
            verdict = "" if bar is None else "met" if bar.met(value) else "missed"
            rows.append((claim.name, measure, shown, "" if bar is None else str(bar), verdict))
    return rows
