"""`pilothouse probes`: make, judge and inspect probes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilothouse.cli.source import (
    Dtype,
    Eager,
    Layers,
    MaxLength,
    Model,
    Out,
    activation_source,
    parse_layers,
    progress_bar,
)
from pilothouse.core.errors import ArtefactError
from pilothouse.harbor.paths import model_dir
from pilothouse.probing import (
    ActivationCache,
    LabelledItem,
    Probe,
    evaluate_probe,
    load_probe,
    load_statements,
    save_probe,
    train_probe,
)
from pilothouse.probing.aggregation import Aggregate
from pilothouse.probing.calibration import CalibrationKind
from pilothouse.probing.evaluation import Evaluation, Part
from pilothouse.probing.fitting import Method
from pilothouse.probing.report import summary, write_report
from pilothouse.probing.statements import digest_items

app = typer.Typer(no_args_is_help=True)

Kind = Literal["texts", "chats"]
Dataset = Annotated[Path, typer.Argument(help="JSONL or CSV of labelled items: see docs/datasets.md.")]
Only = Annotated[Kind | None, typer.Option(help="Use only items of this kind.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for what was read: a run that was stopped goes on when given it again.")
]


@app.command()
def train(
    statements: Dataset,
    name: Annotated[str, typer.Option(help="Name that requests will use.")],
    out: Out,
    label: Annotated[str, typer.Option(help="What label 1 means; scores are the probability of it.")] = "true",
    alarm: Annotated[Literal["high", "low"], typer.Option(help="Which end of the score is bad.")] = "low",
    method: Annotated[Method, typer.Option(help="How the direction is found.")] = "logistic",
    aggregate: Annotated[
        Aggregate, typer.Option(help="How a sequence's score is made of its tokens' logits.")
    ] = "last",
    labels: Annotated[
        Literal["sequence", "token"],
        typer.Option(help="Fit on one reading an item, or on each token that spans label."),
    ] = "sequence",
    calibration: Annotated[CalibrationKind, typer.Option(help="How logits become probabilities.")] = "platt",
    threshold: Annotated[
        float | None, typer.Option(help="Score beyond which a request is flagged; 0.5 without --fpr.")
    ] = None,
    fpr: Annotated[
        float | None, typer.Option(help="Choose the threshold that flags this share of benign items, such as 0.01.")
    ] = None,
    only: Only = None,
    model: Model = None,
    layers: Layers = None,
    token: Annotated[Literal["last", "mean"], typer.Option(help="Where each item is read.")] = "last",
    seed: int = 0,
    cache: Cache = None,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Train a linear probe on labelled statements; without --layers held-out data choose the best single layer."""
    items = _load(statements, only)
    with activation_source(model, dtype, max_model_len, eager) as source, progress_bar("reading, fitting") as progress:
        probe = train_probe(
            source,
            items,
            name=name,
            label=label,
            alarm=alarm,
            layers=parse_layers(layers),
            method=method,
            token=token,
            labels=labels,
            aggregate=aggregate,
            calibration=calibration,
            seed=seed,
            threshold=threshold,
            fpr=fpr,
            cache=_cache(cache, model, dtype),
            progress=progress,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_probe(probe, out)
    Console().print(f"wrote {out}: {probe.name}, layers {list(probe.weights)}", soft_wrap=True)
    _print_metrics(probe.card.get("metrics") or {})


@app.command("eval")
def evaluate(
    probe_file: Annotated[Path, typer.Argument(metavar="PROBE", help="A probe file.")],
    dataset: Dataset,
    split: Annotated[Part, typer.Option(help="Judge the eval split, or everything in the dataset.")] = "eval",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it, raw items included.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the metrics into the probe file's card.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures and an HTML page.")] = None,
    only: Only = None,
    model: Model = None,
    seed: Annotated[int | None, typer.Option(help="Of bootstrap and controls; the training's own.")] = None,
    cache: Cache = None,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Judge a probe on items that did not train it: accuracy, calibration, controls, text-only baseline."""
    probe, items = load_probe(probe_file), _load(dataset, only)
    if card and split == "all" and probe.card.get("data") == digest_items(items):
        raise ArtefactError("a card cannot be written from the items that trained the probe: use --split eval")
    with activation_source(model, dtype, max_model_len, eager) as source, progress_bar("reading, fitting") as progress:
        evaluation = evaluate_probe(
            source, probe, items, split=split, seed=seed, cache=_cache(cache, model, dtype), progress=progress
        )
    _print_evaluation(evaluation)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(evaluation.as_json, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    if card:
        save_probe(_with_metrics(probe, evaluation), probe_file)
    if plots is not None:
        write_report(evaluation, plots)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A probe file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show a probe's card, version and metrics."""
    probe = load_probe(file)
    if as_json:
        typer.echo(json.dumps({"version": probe.version, "layers": list(probe.weights), "card": dict(probe.card)}))
        return
    console = Console()
    console.print(f"{probe.name}  {probe.version}", highlight=False)
    for key in ("label", "alarm", "aggregate", "threshold"):
        console.print(f"  {key}: {getattr(probe, key)}", highlight=False, markup=False)
    console.print(f"  layers: {list(probe.weights)}", highlight=False, markup=False)
    _print_metrics(probe.card.get("metrics") or {})


def _load(path: Path, only: Kind | None) -> list[LabelledItem]:
    items = [item for item in load_statements(path) if only is None or (item.text is not None) == (only == "texts")]
    if not items:
        raise ArtefactError(f"{path} has no {only}")
    return items


def _cache(folder: Path | None, model: str | None, dtype: str) -> ActivationCache | None:
    """A cache for this model in this type. Of a model in a folder, its files tell whether it is still the same."""
    if folder is None:
        return None
    place = model_dir() if model is None else Path(model)
    found = sorted(place.iterdir()) if place.is_dir() else []
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found if file.is_file()]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return ActivationCache(folder, f"{place.name if facts else model}/{dtype}/{digest}")


def _with_metrics(probe: Probe, evaluation: Evaluation) -> Probe:
    """`probe` with what the evaluation measured in its card, over what was there; its version stays."""
    metrics = {**(probe.card.get("metrics") or {}), **evaluation.card_metrics}
    return replace(probe, card={**probe.card, "metrics": metrics})


def _print_evaluation(evaluation: Evaluation) -> None:
    console = Console()
    table = Table("", f"{evaluation.probe}, {evaluation.split}")
    for name, value in summary(evaluation):
        table.add_row(Text(name), Text(value))
    console.print(table)
    for note in evaluation.notes:
        console.print(note, highlight=False, markup=False)


def _print_metrics(metrics: dict[str, object]) -> None:
    for key, value in metrics.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        Console().print(f"  {key}: {shown}", highlight=False, markup=False)
