"""The report on Harbor: a table and a picture of all claims, for people; the raw items are in the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilothouse.harbor.claims import Claim, table

_MET, _MISSED, _FREE = "#0072b2", "#d55e00", "#7f7f7f"


def write_report(claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Write `report.md` and `claims.png`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, picture = folder / "report.md", folder / "claims.png"
    page.write_text(markdown(claims), encoding="utf-8")
    _draw(claims, picture)
    return [page, picture]


def markdown(claims: Sequence[Claim]) -> str:
    """A table of all measures, and what each claim is about."""
    head = ["| claim | measure | measured | bar | |", "|---|---|---|---|---|"]
    rows = [f"| {' | '.join(row)} |" for row in table(claims)]
    about = [f"**{claim.name}** ({len(claim.items)} items). {claim.about}" for claim in claims]
    return "\n\n".join(["# What Harbor can do", "\n".join(head + rows), "![claims](claims.png)", *about]) + "\n"


def _draw(claims: Sequence[Claim], path: Path) -> None:
    # Slow to import; and a figure of its own, since pyplot would keep it for the life of the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [(claim, measure, value) for claim in claims for measure, value in claim.measures.items()]
    # Shares and areas alone: what is counted in other units would press them flat.
    rows = [(claim, measure, value) for claim, measure, value in measured if value is None or value <= 1]
    figure = Figure(figsize=(9, 0.32 * len(rows) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, (claim, measure, value) in enumerate(rows):
        bar = next((bar for bar in claim.bars if bar.measure == measure), None)
        colour = _FREE if bar is None else _MET if bar.met(value) else _MISSED
        axes.barh(y, value or 0.0, color=colour, height=0.7)
        for edge in (bar.low, bar.high) if bar else ():
            if edge is not None:
                axes.plot([edge, edge], [y - 0.45, y + 0.45], color="black")
    axes.set_yticks(range(len(rows)), [f"{claim.name}: {measure}" for claim, measure, _ in rows])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set(xlim=(0, 1.02), xlabel="measured; black: the bar", title="Blue: bar met, orange: missed, grey: no bar")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    # Without the name of the program, so that the same numbers give the same file.
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
