"""`pilothouse probes`: make and inspect probes."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

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
from pilothouse.probing import load_probe, load_statements, save_probe, train_probe
from pilothouse.probing.aggregation import Aggregate

app = typer.Typer(no_args_is_help=True)


@app.command()
def train(
    statements: Annotated[Path, typer.Argument(help='JSONL: {"text" or "messages", "label": 0 | 1} a line, or CSV.')],
    name: Annotated[str, typer.Option(help="Name that requests will use.")],
    out: Out,
    label: Annotated[str, typer.Option(help="What label 1 means; scores are the probability of it.")] = "true",
    alarm: Annotated[Literal["high", "low"], typer.Option(help="Which end of the score is bad.")] = "low",
    method: Annotated[Literal["mass_mean", "logistic"], typer.Option(help="How the direction is found.")] = "logistic",
    aggregate: Annotated[
        Aggregate, typer.Option(help="How a sequence's score is made of its tokens' logits.")
    ] = "last",
    threshold: Annotated[float, typer.Option(help="Score beyond which a request is flagged.")] = 0.5,
    only: Annotated[Literal["texts", "chats"] | None, typer.Option(help="Use only items of this kind.")] = None,
    model: Model = None,
    layers: Layers = None,
    token: Annotated[Literal["last", "mean"], typer.Option(help="Where each item is read.")] = "last",
    seed: int = 0,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Train a linear probe on labelled statements; without --layers held-out data choose the best single layer."""
    items = [
        item for item in load_statements(statements) if only is None or (item.text is not None) == (only == "texts")
    ]
    with activation_source(model, dtype, max_model_len, eager) as source, progress_bar("reading items") as progress:
        probe = train_probe(
            source,
            items,
            name=name,
            label=label,
            alarm=alarm,
            layers=parse_layers(layers),
            method=method,
            token=token,
            aggregate=aggregate,
            seed=seed,
            threshold=threshold,
            progress=progress,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_probe(probe, out)
    Console().print(f"wrote {out}: {probe.name}, layers {list(probe.weights)}")
    _print_metrics(probe.card.get("metrics") or {})


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


def _print_metrics(metrics: dict[str, object]) -> None:
    for key, value in metrics.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        Console().print(f"  {key}: {shown}", highlight=False, markup=False)
