"""Dose curves as pictures: a PNG, and one HTML page that needs nothing beside itself."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pilothouse.steering.dose import DosePoint, DoseReport
from pilothouse.steering.dose_range import MAX_ACCURACY_LOSS, MAX_PERPLEXITY_RISE

Value = Callable[[DosePoint], float | None]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem}"
    "svg{width:100%;height:auto}table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right}"
    "tr.good{background:#e3f3e3}th{border-bottom:1px solid #888}"
)


def write_plots(report: DoseReport, folder: Path) -> list[Path]:
    """Write ``{vector}.dose.png`` and ``{vector}.dose.html`` into `folder`; the paths written."""
    # Slow to import, and a server never plots.
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    figure = _draw(report)
    png, page = (folder / f"{report.vector.name}.dose.{suffix}" for suffix in ("png", "html"))
    figure.savefig(png, format="png", dpi=120)
    svg = io.StringIO()
    # Without a date, and with names that are not drawn by lot, the same report makes the same page.
    with rc_context({"svg.hashsalt": report.vector.digest}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    page.write_text(_page(report, svg.getvalue()), encoding="utf-8")
    return [png, page]


def _draw(report: DoseReport) -> Any:
    # A figure of its own canvas: pyplot would look for a screen and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str, Value]] = [
        ("share of answers with the effect", lambda point: point.effect),
        ("share of facts right", lambda point: point.accuracy),
        ("perplexity of neutral texts", lambda point: point.perplexity),
    ]
    panels += [(f"mean score of {name}", _probe_value(name)) for name in report.points[0].probes]
    figure = Figure(figsize=(8, 2.4 * len(panels) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, value) in zip(axes, panels, strict=True):
        _panel(axis, report, title, value)
    zero = next(point for point in report.points if point.strength == 0)
    axes[1].axhline(zero.accuracy - MAX_ACCURACY_LOSS, color="0.6", linestyle=":")
    axes[2].axhline(zero.perplexity * (1 + MAX_PERPLEXITY_RISE), color="0.6", linestyle=":")
    # A broken model's perplexity would flatten all the others.
    axes[2].set_yscale("log")
    axes[2].yaxis.set_major_formatter("{x:.3g}")
    axes[2].yaxis.set_minor_formatter("{x:.3g}")
    axes[-1].set_xlabel("strength")
    axes[0].legend(loc="best", fontsize="small")
    figure.suptitle(f"{report.vector.name} at layers {', '.join(map(str, report.key['layers']))}")
    return figure


def _probe_value(name: str) -> Value:
    return lambda point: point.probes[name]


def _panel(axis: Any, report: DoseReport, title: str, value: Value) -> None:
    if report.recommendation.range is not None:
        low, high = report.recommendation.range
        if low < high:
            axis.axvspan(low, high, color="tab:green", alpha=0.12, label="recommended")
        else:
            axis.axvline(low, color="tab:green", alpha=0.4, label="recommended")
    for number in range(report.settings.controls):
        label = "random, equal norm" if number == 0 else None
        _line(axis, report.of(number), value, color="0.6", linewidth=1, label=label)
    _line(axis, report.of(None), value, color="tab:blue", marker="o", label=report.vector.name)
    axis.set_ylabel(title, fontsize="small")
    axis.grid(alpha=0.3)


def _line(axis: Any, points: Sequence[DosePoint], value: Value, **style: Any) -> None:
    values = [value(point) for point in points]
    axis.plot([p.strength for p in points], [float("nan") if v is None else v for v in values], **style)


def _page(report: DoseReport, svg: str) -> str:
    name = html.escape(report.vector.name)
    # What stands before the element is for files of their own.
    picture = svg[svg.index("<svg") :]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in _heads(report))
    rows = "".join(_row(report, point) for point in report.of(None))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Dose of {name}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Dose of {name}</h1><p>{_verdict(report)}</p>{picture}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{html.escape(report.vector.digest)}</p></body></html>\n"
    )


def _verdict(report: DoseReport) -> str:
    found = report.recommendation
    if found.range is None:
        return f"No range is recommended: {html.escape(found.reason)}."
    but = f" But {html.escape(report.warning)}." if report.warning else ""
    return f"Recommended: {found.range[0]:g} to {found.range[1]:g} ({html.escape(found.reason)}).{but}"


def _heads(report: DoseReport) -> list[str]:
    return ["strength", "effect", "random", "accuracy", "perplexity", *report.points[0].probes]


def _row(report: DoseReport, point: DosePoint) -> str:
    control = report.control_effect(point.strength)
    cells = [f"{point.strength:g}", f"{point.effect:.3f}", "-" if control is None else f"{control:.3f}"]
    cells += [f"{point.accuracy:.3f}", f"{point.perplexity:.4g}"]
    cells += ["-" if score is None else f"{score:.3f}" for score in point.probes.values()]
    chosen = report.recommendation.range
    good = chosen is not None and chosen[0] <= point.strength <= chosen[1]
    start = '<tr class="good">' if good else "<tr>"
    return start + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
