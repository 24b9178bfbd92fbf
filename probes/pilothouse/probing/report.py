"""An evaluation in pictures, and as one HTML page that needs nothing beside it."""

import base64
import html
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.probing.evaluation import Evaluation

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#7f7f7f"

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}"
    "img{max-width:100%}"
)


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``reliability.png``, ``roc.png``, ``scores.png`` and ``report.html`` with all three in it; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _png(draw, evaluation) for name, draw in _PICTURES.items()}
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture)
    (folder / "report.html").write_text(_page(evaluation, pictures), encoding="utf-8")
    return [*(folder / f"{name}.png" for name in pictures), folder / "report.html"]


def summary(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The metrics in words for a table of two columns, those left out for which there is nothing."""
    metrics = evaluation.metrics
    low, high = metrics["auroc_interval"]
    point = metrics["at_threshold"]
    rows: list[tuple[str, str | None]] = [
        ("items", f"{metrics['n_items']}, {metrics['n_label_1']} of label 1"),
        ("AUROC", f"{metrics['auroc']:.4f} (95% bootstrap interval {low:.4f} to {high:.4f})"),
        *((f"recall at {float(at):.0%} FPR", f"{row['recall']:.4f}") for at, row in metrics["recall_at_fpr"].items()),
        (f"at threshold {point['threshold']:.4g}", f"recall {point['recall']:.4f}, FPR {point['fpr']:.4f}"),
        ("accuracy at 0.5", f"{metrics['accuracy']:.4f}"),
        ("Brier", f"{metrics['brier']:.4f}"),
        ("ECE, 15 bins of equal mass", f"{metrics['ece']:.4f}"),
        ("AUROC, shuffled labels", _number(metrics["control_auroc"])),
        ("selectivity", _number(metrics["selectivity"])),
        ("AUROC, text only", _number(metrics["text_baseline_auroc"])),
        ("AUROC, prompt's end alone", _number(metrics["prompt_end_auroc"])),
        ("AUROC, topic held out", _number(metrics["held_out_topic"]["auroc"])),
        *((f"AUROC, topic {name}", _group(row)) for name, row in metrics["by_topic"].items()),
        *((f"AUROC, bucket {name}", _group(row)) for name, row in metrics["by_bucket"].items()),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _group(row: Mapping[str, Any]) -> str:
    return f"{_number(row['auroc']) or 'one label only'} ({row['n']} items)"


def _png(draw: Callable[[Evaluation, Any], None], evaluation: Evaluation) -> bytes:
    # Slow to import; and a figure of its own, since pyplot would keep it for the life of the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(evaluation, figure.add_subplot())
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _reliability(evaluation: Evaluation, axes: Any) -> None:
    table = evaluation.metrics["reliability"]
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="calibrated")
    mean, observed = ([row[key] for row in table] for key in ("mean_score", "observed"))
    axes.plot(mean, observed, color=_BLUE, marker="o", label=f"ECE {evaluation.metrics['ece']:.3f}")
    axes.set(xlabel="mean score of the bin", ylabel="share with the label", title="Reliability, bins of equal mass")
    axes.legend()


def _roc(evaluation: Evaluation, axes: Any) -> None:
    from sklearn.metrics import roc_curve

    # Towards the alarm, so that both axes mean what they do in a monitor.
    bad = 1 if evaluation.alarm == "high" else 0
    sign = 1 if bad else -1
    fpr, recall, _ = roc_curve(
        [item.label == bad for item in evaluation.items], [sign * i.score for i in evaluation.items]
    )
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--")
    axes.plot(fpr, recall, color=_BLUE, label=f"AUROC {evaluation.metrics['auroc']:.3f}")
    point = evaluation.metrics["at_threshold"]
    axes.plot([point["fpr"]], [point["recall"]], color=_ORANGE, marker="o", linestyle="", label="at the threshold")
    axes.set(xlabel="share of benign items flagged", ylabel="share of bad items flagged", title="ROC")
    axes.legend()


def _scores(evaluation: Evaluation, axes: Any) -> None:
    bins = np.linspace(0, 1, 31)
    for label, colour in ((0, _ORANGE), (1, _BLUE)):
        scores = [item.score for item in evaluation.items if item.label == label]
        axes.hist(scores, bins=bins, alpha=0.6, color=colour, label=f"label {label}")
    axes.axvline(evaluation.threshold, color=_GREY, linestyle="--", label="threshold")
    axes.set(xlabel=f"score: probability of {evaluation.label!r}", ylabel="items", title="Scores")
    axes.legend()


_PICTURES = {"reliability": _reliability, "roc": _roc, "scores": _scores}


def _page(evaluation: Evaluation, pictures: Mapping[str, bytes]) -> str:
    rows = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in summary(evaluation))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in evaluation.notes)
    images = "".join(
        f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(picture).decode()}"></p>'
        for name, picture in pictures.items()
    )
    title = html.escape(f"Probe {evaluation.probe} on {evaluation.model}")
    about = html.escape(f"version {evaluation.version}, data {evaluation.data}, split {evaluation.split}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{about}</p><table>{rows}</table>{notes}{images}</body></html>\n"
    )
