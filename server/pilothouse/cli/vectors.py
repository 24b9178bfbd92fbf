"""`pilothouse vectors`: make and inspect steering vectors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pilothouse.cli.convert import Source, convert_vector
from pilothouse.cli.dose import dose
from pilothouse.cli.source import (
    Dtype,
    Eager,
    MaxLength,
    Model,
    Out,
    Resume,
    activation_source,
    kept_in,
    model_weights,
    parse_layers,
    progress_bar,
    write_json,
)
from pilothouse.core.artefact import check_name
from pilothouse.core.errors import StartupError
from pilothouse.core.places import local_path
from pilothouse.steering import (
    ContrastPair,
    ReadWork,
    Recipe,
    Vector,
    extract_vector,
    extraction_key,
    import_vector,
    load_pairs,
    save_vector,
)
from pilothouse.steering.methods import Method
from pilothouse.steering.sweep import HELD_OUT, hold_out
from pilothouse.steering.tokens import parse_token

app = typer.Typer(no_args_is_help=True)


app.command()(dose)
app.command("convert")(convert_vector)


@app.command()
def extract(
    pairs: Annotated[Path, typer.Argument(help='JSONL: {"positive": text or messages, "negative": ...} a line.')],
    name: Annotated[str, typer.Option(help="Name that requests will use.")],
    out: Out,
    model: Model = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers joined by commas, or `best`: the one that separates held-out pairs best.")
    ] = None,
    method: Annotated[Method, typer.Option(help="How the direction is found.")] = "mean_difference",
    token: Annotated[
        str, typer.Option(help="Where each item is read: last, mean, prompt_end, or -1, -2, ... from its end.")
    ] = "last",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Judge each layer on held-out pairs: split `select`, or else 30%.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the pairs held out, and of LAT's random pairs.")] = 0,
    split: Annotated[str | None, typer.Option(help="Make the vector only from the pairs of this split.")] = None,
    recommended: Annotated[
        tuple[float, float] | None, typer.Option(help="Lowest and highest strength that its card recommends.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the card and every pair's projections at every layer.")
    ] = None,
    resume: Resume = True,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """A direction from contrast pairs, read through the serving engine's own sites.

    mean_difference: CAA (Rimsky et al. 2024); pca: of the paired differences (repeng's pca_center); lat: RepE (Zou et
    al. 2023); logistic: the weights of a logistic regression. All are scaled alike: 1 goes from negatives to positives.
    """
    check_name(name)
    if recommended is not None and recommended[0] > recommended[1]:
        raise StartupError("--recommended takes the lowest strength and then the highest")
    best = layers == "best"
    recipe = Recipe(method, parse_token(token), None if best else parse_layers(layers), best, seed)
    made_from, held_out = _split(load_pairs(pairs), split, sweep or best, seed)
    weights, folder = model_weights(model, dtype), out.with_suffix(".extract")
    with activation_source(model, dtype, max_model_len, eager) as source, progress_bar("reading items") as progress:
        work = ReadWork.open(folder, extraction_key(source, made_from, held_out, recipe, weights), resume)
        with kept_in(folder):
            found = extract_vector(
                source, made_from, name=name, recipe=recipe, held_out=held_out, work=work, progress=progress
            )
    card = {**found.vector.card, "weights": weights, "file": pairs.name, "split": split}
    vector = replace(found.vector, recommended=recommended, card=card)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_vector(vector, out)
    if json_file is not None:
        write_json({"digest": vector.digest, "card": vector.full_card, "items": list(found.items)}, json_file)
    work.remove()
    _print_sweep(vector)
    line = f"wrote {out}: {vector.name}, layers {sorted(vector.direction.layers)}, {len(made_from)} pairs"
    Console().print(line, highlight=False, soft_wrap=True)


def _split(
    pairs: list[ContrastPair], split: str | None, sweep: bool, seed: int
) -> tuple[list[ContrastPair], list[ContrastPair]]:
    """Pairs to make the vector from, and pairs to judge its layers by (none without a sweep)."""
    wanted = [pair for pair in pairs if split is None or pair.split == split]
    if not sweep:
        return wanted, []
    judges = [pair for pair in pairs if pair.split == HELD_OUT]
    # The split that was asked for is made from; what is held out stays what it is.
    return (wanted, judges) if judges and split not in (None, HELD_OUT) else hold_out(wanted, seed)


def _print_sweep(vector: Vector) -> None:
    reports = vector.card.get("sweep")
    if not reports:
        return
    table = Table("layer", "AUROC", "accuracy", "separation", "row norm", "stream norm")
    for report in reports:
        numbers = (report[key] for key in ("auroc", "accuracy", "separation", "row_norm", "stream_norm"))
        style = "green" if report["layer"] in vector.direction.layers and len(vector.direction.layers) == 1 else None
        table.add_row(str(report["layer"]), *(f"{number:.4g}" for number in numbers), style=style)
    Console().print(table)


@app.command()
def info(
    source: Source,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show a vector's card, digest and norms, of any format that `convert` reads."""
    vector = import_vector(local_path(source))
    norms = {layer: float((row.astype("float64") ** 2).sum() ** 0.5) for layer, row in vector.direction.layers.items()}
    if as_json:
        typer.echo(json.dumps({"digest": vector.digest, "norms": norms, "card": dict(vector.card)}))
        return
    console = Console()
    console.print(f"{vector.name}  {vector.digest}", highlight=False)
    facts: dict[str, Any] = {
        "model": vector.model,
        "site": vector.site,
        "method": vector.method,
        "recommended": vector.recommended,
    }
    origin = vector.card.get("source")
    if isinstance(origin, dict):
        facts |= {f"source {key}": origin.get(key) for key in ("format", "model_hint", "convention")}
    for key, value in facts.items():
        shown = "-" if value is None else value
        console.print(f"  {key}: {shown}", highlight=False, markup=False, soft_wrap=True)
    table = Table("layer", "norm", "residual norm", "default")
    for layer, norm in sorted(norms.items()):
        residual = vector.resid_norm.get(layer)
        chosen = "yes" if layer in vector.default_layers else ""
        table.add_row(str(layer), f"{norm:.4g}", "-" if residual is None else f"{residual:.4g}", chosen)
    console.print(table)
