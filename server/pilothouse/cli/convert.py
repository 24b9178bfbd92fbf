"""`pilothouse vectors convert`, `probes convert` and `sae convert`: files of other libraries become files of ours."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pilothouse.cli.source import Layers, parse_layers
from pilothouse.core.artefact import parse_json, read_artefact
from pilothouse.core.errors import ArtefactError
from pilothouse.core.places import local_path
from pilothouse.core.sites import ModelShape
from pilothouse.probing import Probe, ProbeOptions, import_probe, save_probe
from pilothouse.probing.aggregation import Aggregate, Alarm
from pilothouse.steering import (
    ImportOptions,
    SaeDtype,
    Vector,
    import_vector,
    load_sae,
    save_sae,
    save_vector,
)

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A file or folder, here, hf://org/repo[@revision][/path] or s3://...")
]
NewFile = Annotated[Path | None, typer.Option("--out", "-o", help="File to write; NAME.safetensors here when absent.")]
NewName = Annotated[str | None, typer.Option(help="Name that requests will use; made from SRC when absent.")]
MadeFor = Annotated[
    str | None,
    typer.Option(
        help="Model that it was made for: it is then refused on any other. Of a folder, the shape is checked."
    ),
]


def convert_vector(
    source: Source,
    out: NewFile = None,
    name: NewName = None,
    model: MadeFor = None,
    layer_offset: Annotated[
        int, typer.Option(help="Added to each layer of SRC, for files that count otherwise than docs/formats.md says.")
    ] = 0,
    layers: Layers = None,
) -> None:
    """Write a vector of another library as ours: repeng, llama.cpp, EasySteer, CAA, IBM .svec, plain safetensors.

    Layers become the 0-based decoder block after which the direction is added. What was read, and how its layers were
    taken, is kept in the card. --layers chooses among them, counted after the offset.
    """
    path = local_path(source)
    wanted = parse_layers(layers)
    options = ImportOptions(name, model, layer_offset, None if wanted is None else tuple(wanted))
    vector = import_vector(path, options)
    _check_model(model, vector)
    save_vector(vector, written := _target(out, vector.name, path))
    _print(f"wrote {written}: {vector.name}, layers {sorted(vector.direction.layers)}")
    origin = vector.card.get("source", {})
    if "convention" in origin:
        _print(f"layers: {origin['convention']}; offset {layer_offset}")
    if origin.get("model_hint") and model is None:
        _print(f"the file says it is for {origin['model_hint']!r}; say --model to have it refused on others")


def convert_probe(
    source: Source,
    out: NewFile = None,
    name: NewName = None,
    model: MadeFor = None,
    label: Annotated[str, typer.Option(help="What a score is the probability of.")] = "hallucination",
    alarm: Annotated[Alarm, typer.Option(help="Which end of the score is bad.")] = "high",
    aggregate: Annotated[Aggregate, typer.Option(help="How tokens' logits become a sequence's score.")] = "max",
    threshold: Annotated[float, typer.Option(help="Score beyond which a request is flagged.")] = 0.5,
) -> None:
    """Write a probe of another project as ours: the heads of hallucination_probes, trained without an adapter."""
    path = local_path(source)
    probe = import_probe(path, ProbeOptions(name, model, label, alarm, aggregate, threshold))
    _check_model(model, probe)
    save_probe(probe, written := _target(out, probe.name, path))
    _print(f"wrote {written}: {probe.name}, layers {sorted(probe.weights)}")


def convert_sae(
    source: Source,
    out: NewFile = None,
    name: NewName = None,
    dtype: Annotated[SaeDtype, typer.Option(help="Type of the two matrices in the new file.")] = "float32",
) -> None:
    """Write an SAE of any known format as ours: one file, with factors, biases and gates folded into its rows.

    Such a file is what can be uploaded to a server. What it was made of is kept in the card.
    """
    path = local_path(source)
    sae = load_sae(path, name)
    # SRC may be a folder, and the rows are read from a file in it.
    save_sae(sae, written := _target(out, sae.name, sae.decoder.path), dtype=dtype)
    _print(f"wrote {written}: {sae.name}, layer {sae.layer}, {sae.d_sae} features")
    _print(f"read and clamp: {'yes' if sae.why_not_read is None else f'no: {sae.why_not_read}'}")


def _target(out: Path | None, name: str, source: Path) -> Path:
    target = out or Path(f"{name}.safetensors")
    if target.exists() and target.resolve() == source.resolve():
        raise ArtefactError(f"{target} would be written over itself: give another --out")
    return target


def _check_model(model: str | None, artefact: Vector | Probe) -> None:
    """Of a model that is a folder here, check width, depth and type now rather than when it is served."""
    path = Path(model, "config.json") if model else None
    if model is None or path is None or not path.is_file():
        return
    config = parse_json(read_artefact(path))
    text = config.get("text_config", config) if isinstance(config, dict) else {}
    width, depth = text.get("hidden_size"), text.get("num_hidden_layers")
    if type(width) is int and type(depth) is int:
        artefact.check_fits(ModelShape(model, width, depth, tuple(range(depth))))
    origin: dict[str, Any] = artefact.card.get("source", {})
    given, served = origin.get("model_type"), {config.get("model_type"), text.get("model_type")}
    if given is not None and given not in served:
        raise ArtefactError(f"{artefact.name!r} was made for a model of type {given!r}, and {model} is not of it")


def _print(line: str) -> None:
    Console().print(line, highlight=False, markup=False, soft_wrap=True)
