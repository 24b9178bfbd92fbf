"""`pilothouse vectors`: make and inspect steering vectors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

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
from pilothouse.steering import extract_mean_difference, load_pairs, load_vector, save_vector

app = typer.Typer(no_args_is_help=True)


@app.command()
def extract(
    pairs: Annotated[Path, typer.Argument(help='JSONL: {"positive": text or messages, "negative": ...} a line.')],
    name: Annotated[str, typer.Option(help="Name that requests will use.")],
    out: Out,
    model: Model = None,
    layers: Layers = None,
    token: Annotated[Literal["last", "mean"], typer.Option(help="Where each item is read.")] = "last",
    split: Annotated[str | None, typer.Option(help="Use only the pairs of this split.")] = None,
    recommended: Annotated[
        tuple[float, float] | None, typer.Option(help="Lowest and highest strength that its card recommends.")
    ] = None,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Mean difference of contrast pairs, read through the serving engine's own sites (CAA, Rimsky et al. 2024)."""
    loaded = [pair for pair in load_pairs(pairs) if split is None or pair.split == split]
    with activation_source(model, dtype, max_model_len, eager) as source, progress_bar("reading pairs") as progress:
        vector = extract_mean_difference(
            source, loaded, name=name, layers=parse_layers(layers), token=token, progress=progress
        )
    if recommended is not None:
        vector = replace(vector, recommended=recommended)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_vector(vector, out)
    Console().print(f"wrote {out}: {vector.name}, layers {sorted(vector.direction.layers)}, {len(loaded)} pairs")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A vector file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show a vector's card, digest and norms."""
    vector = load_vector(file)
    norms = {layer: float((row.astype("float64") ** 2).sum() ** 0.5) for layer, row in vector.direction.layers.items()}
    if as_json:
        typer.echo(json.dumps({"digest": vector.digest, "norms": norms, "card": dict(vector.card)}))
        return
    console = Console()
    console.print(f"{vector.name}  {vector.digest}", highlight=False)
    facts = {"model": vector.model, "site": vector.site, "method": vector.method, "recommended": vector.recommended}
    for key, value in facts.items():
        console.print(f"  {key}: {value if value is not None else '-'}", highlight=False, markup=False)
    table = Table("layer", "norm", "residual norm", "default")
    for layer, norm in sorted(norms.items()):
        residual = vector.resid_norm.get(layer)
        chosen = "yes" if layer in vector.default_layers else ""
        table.add_row(str(layer), f"{norm:.4g}", "-" if residual is None else f"{residual:.4g}", chosen)
    console.print(table)
