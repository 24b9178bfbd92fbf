"""The card of an evaluation: pictures, one HTML page that needs nothing beside it, and Markdown beside the pictures."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
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


def write_card(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``reliability.png``, ``roc.png``, ``scores.png``, ``card.html`` with all three in it, and ``card.md`` that
    refers to them; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _png(draw, evaluation) for name, draw in _PICTURES.items()}
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture)
    (folder / "card.html").write_text(_page(evaluation, pictures), encoding="utf-8")
    (folder / "card.md").write_text(_markdown(evaluation, list(pictures)), encoding="utf-8")
    return [*(folder / f"{name}.png" for name in pictures), folder / "card.html", folder / "card.md"]


def summary(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The metrics in words for a table of two columns, those left out for which there is nothing."""
    metrics = evaluation.metrics
    own = metrics["at_threshold"]
    rows: list[tuple[str, str | None]] = [
        ("items", f"{metrics['n_items']}, {metrics['n_label_1']} of label 1"),
        ("AUROC", f"{metrics['auroc']:.4f}{_interval(metrics['auroc_interval'])}"),
        *((f"recall at {float(at):.0%} FPR", f"{row['recall']:.4f}") for at, row in metrics["recall_at_fpr"].items()),
        (f"at its threshold, {own['threshold']:.4g}", _point(own)),
        *(
            (f"at its threshold for {float(rate):.0%} FPR, {row['threshold']:.4g}", _point(row))
            for rate, row in metrics["at_card_thresholds"].items()
        ),
        ("accuracy at 0.5", f"{metrics['accuracy']:.4f}"),
        ("Brier", f"{metrics['brier']:.4f}"),
        (f"ECE, {metrics['ece_bins']['n']} bins of equal mass", f"{metrics['ece']:.4f}"),
        ("AUROC, shuffled labels", _number(metrics["control_auroc"])),
        ("selectivity", _number(metrics["selectivity"])),
        ("AUROC, text only", _number(metrics["text_baseline_auroc"])),
        ("AUROC, prompt's end alone", _number(metrics["prompt_end_auroc"])),
        ("AUROC, topic held out", _number(metrics["held_out_topic"]["auroc"])),
        *((f"AUROC, topic {name}", _group(row)) for name, row in metrics["by_topic"].items()),
        *((f"AUROC, bucket {name}", _group(row)) for name, row in metrics["by_bucket"].items()),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    drawn = f"{found['n_units']} {found['unit']}{'' if found['n_units'] == 1 else 's'} drawn"
    return f" (95% bootstrap interval {found['low']:.4f} to {found['high']:.4f}, {drawn})"


def _point(row: Mapping[str, float]) -> str:
    return f"recall {row['recall']:.4f}, FPR {row['fpr']:.4f}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _group(row: Mapping[str, Any]) -> str:
    area = _number(row["auroc"]) or "one label only"
    return f"{area} ({row['n']} items){_interval(row.get('auroc_interval'))}"


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


def _title(evaluation: Evaluation) -> tuple[str, str]:
    """What the card is of, and what it was measured on."""
    about = (
        f"label {evaluation.label!r}, alarm {evaluation.alarm}, aggregate {evaluation.aggregate}; "
        f"version {evaluation.version}, data {evaluation.data}, split {evaluation.split}, seed {evaluation.seed}"
    )
    return f"Probe {evaluation.probe} on {evaluation.model}", about


def _markdown(evaluation: Evaluation, pictures: Sequence[str]) -> str:
    title, about = _title(evaluation)
    cells = [("measure", "value"), ("---", "---"), *summary(evaluation)]
    table = "\n".join(f"| {name} | {value} |" for name, value in ((_cell(a), _cell(b)) for a, b in cells))
    images = "\n".join(f"![{name}]({name}.png)" for name in pictures)
    return "\n\n".join([f"# {title}", about, table, *evaluation.notes, images]) + "\n"


def _cell(text: str) -> str:
    # A topic may be called anything; a bar or a line's end would break the table.
    return " ".join(text.replace("|", "\\|").split())


def _page(evaluation: Evaluation, pictures: Mapping[str, bytes]) -> str:
    rows = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in summary(evaluation))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in evaluation.notes)
    images = "".join(
        f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(picture).decode()}"></p>'
        for name, picture in pictures.items()
    )
    title, about = (html.escape(text) for text in _title(evaluation))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{about}</p><table>{rows}</table>{notes}{images}</body></html>\n"
    )
