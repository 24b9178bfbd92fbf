"""`pilothouse probes`: make, judge and inspect probes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilothouse.cli.convert import Source, convert_probe
from pilothouse.cli.harbor import HARBOR_NAME
from pilothouse.cli.recalibrate import recalibrate_probe
from pilothouse.cli.source import (
    Dtype,
    Eager,
    Layers,
    MaxLength,
    Model,
    Out,
    activation_source,
    kept_in,
    model_weights,
    parse_layers,
    progress_bar,
    write_json,
)
from pilothouse.core.errors import ArtefactError
from pilothouse.core.places import local_path
from pilothouse.probing import (
    ActivationCache,
    LabelledItem,
    Probe,
    evaluate_probe,
    load_probe,
    load_statements,
    save_probe,
    score_items,
    train_probe,
    write_card,
)
from pilothouse.probing.aggregation import Aggregate
from pilothouse.probing.calibration import CalibrationKind
from pilothouse.probing.evaluation import Evaluation, Part
from pilothouse.probing.fitting import Method
from pilothouse.probing.report import summary
from pilothouse.probing.splits import SplitBy, split_items, with_splits
from pilothouse.probing.statements import digest_items, write_statements

app = typer.Typer(no_args_is_help=True)
app.command("convert")(convert_probe)
app.command("recalibrate")(recalibrate_probe)

Kind = Literal["texts", "chats"]
Dataset = Annotated[
    Path,
    typer.Argument(
        help='JSONL, {"text": ... or "messages": [...], "label": 0 or 1} a line, and "split", "topic", "group", '
        '"bucket", "spans" where wanted; or CSV with the columns statement and label.'
    ),
]
Only = Annotated[Kind | None, typer.Option(help="Use only items of this kind.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder to keep what was read in, for further runs; a run that was stopped goes on without it too."
    ),
]
By = Annotated[SplitBy, typer.Option(help="What stays in one split: the items of a group, or those of a topic.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything, raw items included.")]


@app.command()
def train(
    statements: Dataset,
    name: Annotated[str, typer.Option(help="Name that requests will use.")],
    out: Out,
    label: Annotated[str, typer.Option(help="What label 1 means; scores are the probability of it.")] = "true",
    alarm: Annotated[Literal["high", "low"], typer.Option(help="Which end of the score is bad.")] = "low",
    method: Annotated[Method, typer.Option(help="How the direction is found.")] = "logistic",
    aggregate: Annotated[
        Aggregate | None,
        typer.Option(
            help="How tokens' logits become a sequence's score; absent: worst_ema for chats with answers, else last."
        ),
    ] = None,
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
    split_by: By = "group",
    only: Only = None,
    json_file: Json = None,
    model: Model = None,
    layers: Layers = None,
    token: Annotated[
        Literal["last", "mean", "online"] | None,
        typer.Option(
            help="Tokens to fit on. online: those that the aggregate rests on, as it does for logistic when absent."
        ),
    ] = None,
    seed: int = 0,
    cache: Cache = None,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Train a linear probe on labelled texts or chats; without --layers held-out data choose the best single layer."""
    items = _load(statements, only)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        _kept(cache, out.with_suffix(".work"), model, dtype) as kept,
        activation_source(model, dtype, max_model_len, eager) as source,
    ):
        with progress_bar("reading, fitting") as progress:
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
                split_by=split_by,
                threshold=threshold,
                fpr=fpr,
                cache=kept,
                progress=progress,
            )
        if json_file is not None:
            with progress_bar("scoring") as progress:
                scored = score_items(source, probe, items, cache=kept, progress=progress)
            write_json({"version": probe.version, "card": dict(probe.card), "items": scored}, json_file)
        save_probe(probe, out)
    Console().print(f"wrote {out}: {probe.name}, layers {sorted(probe.weights)}", soft_wrap=True)
    _print_metrics(probe.card.get("metrics") or {})


@app.command()
def split(
    dataset: Dataset,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file to write.")],
    by: By = "group",
    seed: int = 0,
) -> None:
    """Name every item's split, once for all later training and evaluation: train, select, calibrate or eval.

    Splits that the dataset names stay; the others get a fifth each of what is left.
    """
    items = _load(dataset, None)
    splits = split_items(items, seed, choosing=True, by=by)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_statements(with_splits(items, splits), out)
    sizes = ", ".join(f"{name} {size}" for name, size in splits.sizes.items())
    Console().print(f"wrote {out}: {sizes}", soft_wrap=True, highlight=False)


@app.command("eval")
def evaluate(
    probe_file: Annotated[Path, typer.Argument(metavar="PROBE", help="A probe file.")],
    dataset: Dataset,
    split: Annotated[Part, typer.Option(help="Judge the eval split, or everything in the dataset.")] = "eval",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the card; PROBE with .card for its ending when absent."),
    ] = None,
    json_file: Json = None,
    save_metrics: Annotated[
        bool, typer.Option("--save-metrics", help="Write the metrics into the probe file too; its version stays.")
    ] = False,
    only: Only = None,
    model: Model = None,
    seed: Annotated[int | None, typer.Option(help="Of bootstrap and controls; the training's own.")] = None,
    cache: Cache = None,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Judge a probe on items that did not train it, and write its card: card.html, card.md and pictures.

    AUROC with a bootstrap interval, recall at 1% and 10% false positives, Brier, ECE and reliability; shuffled-label
    controls, topics held out, a text-only baseline, and figures within topics and buckets.
    """
    probe, items = load_probe(probe_file), _load(dataset, only)
    if save_metrics and split == "all" and probe.card.get("data") == digest_items(items):
        raise ArtefactError("metrics of the items that trained a probe are not saved in it: use --split eval")
    folder = out or probe_file.with_suffix(".card")
    with (
        _kept(cache, folder / "work", model, dtype) as kept,
        activation_source(model, dtype, max_model_len, eager) as source,
    ):
        with progress_bar("reading, fitting") as progress:
            evaluation = evaluate_probe(source, probe, items, split=split, seed=seed, cache=kept, progress=progress)
        written = write_card(evaluation, folder)
    _print_evaluation(evaluation)
    if json_file is not None:
        write_json(evaluation.as_json, json_file)
    if save_metrics:
        save_probe(_with_metrics(probe, evaluation), probe_file)
    Console().print(f"wrote {', '.join(map(str, written))}", soft_wrap=True, highlight=False)


@app.command()
def info(
    source: Source,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show a probe's card, version and metrics."""
    probe = load_probe(local_path(source))
    if as_json:
        typer.echo(json.dumps({"version": probe.version, "layers": sorted(probe.weights), "card": dict(probe.card)}))
        return
    console = Console()
    console.print(f"{probe.name}  {probe.version}", highlight=False)
    for key in ("label", "alarm", "aggregate", "threshold"):
        console.print(f"  {key}: {getattr(probe, key)}", highlight=False, markup=False)
    console.print(f"  layers: {sorted(probe.weights)}", highlight=False, markup=False)
    _print_metrics(probe.card.get("metrics") or {})


def _load(path: Path, only: Kind | None) -> list[LabelledItem]:
    items = [item for item in load_statements(path) if only is None or (item.text is not None) == (only == "texts")]
    if not items:
        raise ArtefactError(f"{path} has no {only}")
    return items


@contextmanager
def _kept(folder: Path | None, work: Path, model: str | None, dtype: str) -> Iterator[ActivationCache]:
    """What was read from this model in this type: in `folder`, or else in `work` until the block has run to its end."""
    of_model = json.dumps({"model": model or HARBOR_NAME, **model_weights(model, dtype)}, sort_keys=True)
    cache = ActivationCache(folder or work, of_model)
    with kept_in(cache.folder):
        yield cache
    if folder is None:
        cache.remove()


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


def _print_metrics(metrics: dict[str, Any]) -> None:
    """The figures; tables of an evaluation are left to its card."""
    for key, value in metrics.items():
        if isinstance(value, int | float):
            Console().print(
                f"  {key}: {value:.4f}" if isinstance(value, float) else f"  {key}: {value}", highlight=False
            )
    for rate, row in (metrics.get("thresholds") or {}).items():
        shown = row["reason"] if row["threshold"] is None else f"{row['threshold']:.4f}"
        Console().print(f"  threshold at {float(rate):.0%} false positives: {shown}", highlight=False, soft_wrap=True)
    if sizes := metrics.get("n"):
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        Console().print(f"  items: {shown}", highlight=False)
