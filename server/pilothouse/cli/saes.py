"""`pilothouse sae`: train, label, inspect and convert sparse autoencoders."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pilothouse.cli.convert import convert_sae
from pilothouse.cli.harbor import HARBOR_NAME
from pilothouse.cli.sae_tables import print_features, print_measures, print_sae
from pilothouse.cli.source import (
    Dtype,
    Eager,
    MaxLength,
    Model,
    Resume,
    activation_source,
    kept_in,
    model_weights,
    progress_bar,
    write_json,
)
from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError, StartupError
from pilothouse.core.places import local_path
from pilothouse.core.serving import ActivationSource
from pilothouse.harbor.paths import model_dir
from pilothouse.steering import load_sae
from pilothouse.steering.sae_examples import Decode
from pilothouse.steering.sae_folder import check_free, finish_folder, read_report
from pilothouse.steering.sae_labels import PURITY, label_features, read_labels, write_labels
from pilothouse.steering.sae_run import Opener, ReadPlan, SaeWork, hook_metadata
from pilothouse.steering.sae_settings import Architecture, SaeSettings, check_device, sae_lens
from pilothouse.steering.sae_store import KeptAs
from pilothouse.steering.sae_texts import digest_texts, load_sae_texts, split_texts

app = typer.Typer(no_args_is_help=True)
app.command("convert")(convert_sae)

Data = Annotated[
    list[Path],
    typer.Argument(
        help='JSONL files, {"text": ...} or {"messages": [...]} a line, with "split" (train, eval) where wanted; other '
        "keys are metadata, by which features can be named."
    ),
]
Folder = Annotated[Path, typer.Argument(help="An SAE's folder (SAELens).")]
Context = Annotated[int, typer.Option(min=2, help="Tokens of a text that are read; the rest is cut off.")]
Kept = Annotated[KeptAs, typer.Option(help="Type of the activations in the work folder.")]
Json = Annotated[Path | None, typer.Option("--json", help="File for everything, raw items included.")]


@app.command()
def train(
    data: Data,
    name: Annotated[str, typer.Option(help="Name that requests will use, and that of the SAE's folder.")],
    layer: Annotated[int, typer.Option(help="The SAE reads the stream after this block.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder NAME itself, or the one that NAME goes into.")],
    model: Model = None,
    architecture: Annotated[
        Architecture, typer.Option(help="k features a token, or a learnt threshold each.")
    ] = "topk",
    k: Annotated[int, typer.Option(help="Features active at a token; for jumprelu the mean that is aimed at.")] = 32,
    width: Annotated[int, typer.Option(help="Features.")] = 2048,
    tokens: Annotated[int, typer.Option(help="Tokens to train on, over again where the texts have fewer.")] = 2_000_000,
    batch: Annotated[int, typer.Option(help="Tokens a step.")] = 1024,
    rate: Annotated[float | None, typer.Option(help="Learning rate; by the law of Gao et al. when absent.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, of order, and of what is held out.")] = 0,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it; the engine reads where it runs.")] = (
        "cpu"
    ),
    context: Context = 512,
    keep_as: Kept = "float32",
    json_file: Json = None,
    resume: Resume = True,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """A sparse autoencoder of the stream after one block, read through the serving engine's own sites.

    topk: Gao et al. 2024; jumprelu: Rajamanoharan et al. 2024. Written as a SAELens folder, with each feature's largest
    activation, its frequency, and a report on texts that it was not trained on.
    """
    settings = SaeSettings(architecture, width, k, tokens, batch, rate, seed, device)
    folder = out if out.name == check_name(name) else out / name
    check_free(folder)
    check_device(device)
    sae_lens()
    texts = split_texts(load_sae_texts(data), seed)
    weights = model_weights(model, dtype)
    plan = ReadPlan(layer, context, {"name": model or HARBOR_NAME, **weights}, tokens, keep_as)
    work = SaeWork(folder.with_name(f"{name}.train"), progress_bar, resume)
    with kept_in(work.folder):
        sides = {"train": texts.train, "eval": texts.held_out}
        stores = work.read(sides, plan, _opener(model, dtype, max_model_len, eager))
        digests = {side: digest_texts(of_side) for side, of_side in sides.items()}
        metadata = {**hook_metadata(layer, stores["train"].model, context), "dataset": digests["train"]}
        trained, measures = work.train(stores, settings, metadata)
    facts = {"name": name, "model": stores["train"].model, "weights": weights, "layer": layer, "context": context}
    counts = {side: {"texts": len(store.texts), "digest": digests[side]} for side, store in stores.items()}
    report = {
        **facts,
        "settings": {**settings.card, "steps": trained.steps},
        "data": {"files": [path.name for path in data], **counts, "eval_texts_also_in_train": texts.repeated},
        "curve": trained.curve,
    }
    whole = finish_folder(work.draft, folder, measures["train"], measures["eval"], report)
    if json_file is not None:
        write_json(whole, json_file)
    work.remove()
    print_measures(whole)
    Console().print(f"wrote {folder}", highlight=False, soft_wrap=True)


@app.command()
def label(
    folder: Folder,
    data: Data,
    top: Annotated[int, typer.Option(min=1, help="Examples a feature, each of another text.")] = 10,
    purity: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of the examples that must agree on what names a feature.")
    ] = PURITY,
    split: Annotated[str | None, typer.Option(help="Use only texts of this split.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read; all of them when absent.")] = None,
    model: Model = None,
    context: Context = 512,
    keep_as: Kept = "float32",
    json_file: Json = None,
    resume: Resume = True,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """The strongest examples of each feature, and a name where they share one; written to labels.json in the folder.

    They share a token, the word before it, or a metadata value that is at least twice as frequent as elsewhere.
    """
    sae = load_sae(folder)
    if sae.format != "saelens":
        raise ArtefactError(f"{folder}: SAELens finds the examples, and cannot load the format {sae.format!r}")
    sae_lens()
    texts = [text for text in load_sae_texts(data) if split is None or text.split == split]
    if not texts:
        raise StartupError(f"no text has split {split!r}")
    weights = model_weights(model, dtype)
    plan = ReadPlan(sae.layer, context, {"name": model or HARBOR_NAME, **weights}, tokens, keep_as)
    work = SaeWork(folder.resolve().with_name(f"{folder.resolve().name}.label"), progress_bar, resume)
    with kept_in(work.folder):
        opener = _opener(model, dtype, max_model_len, eager)
        store = work.read({"label": texts}, plan, opener)["label"]
        found = work.top_rows(folder, store, top, sae.digest)
        with progress_bar("naming features") as progress:
            labelled = label_features(found, store, texts, decoder(model), purity, progress)
    card = {
        "sae": sae.name,
        "digest": sae.digest,
        "model": store.model,
        "weights": weights,
        "files": [path.name for path in data],
        "dataset": digest_texts(texts),
        "split": split,
        "tokens": store.n_rows,
        "top": top,
        "purity": purity,
        "d_sae": sae.d_sae,
    }
    content = write_labels(folder, card, labelled)
    if json_file is not None:
        write_json(content, json_file)
    work.remove()
    print_features(content, range(sae.d_sae), 20)
    named = sum(feature.shared is not None for feature in labelled)
    line = f"{len(labelled)} of {sae.d_sae} features fire on {store.n_rows} tokens, {named} have a name"
    Console().print(line, highlight=False, soft_wrap=True)


@app.command()
def info(
    place: Annotated[str, typer.Argument(help="An SAE's folder or file of any known format, here, hf:// or a URL.")],
    feature: Annotated[list[int] | None, typer.Option(help="Show this feature's examples; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show an SAE's format and place, whether its features can be read and clamped, how well it does, and its features'
    names and examples."""
    path = local_path(place)
    sae = load_sae(path)
    for number in feature or []:
        sae.feature(number)
    folder = path if path.is_dir() else path.parent
    # What `train` and `label` write lies in SAELens's folders only.
    report, labels = (read_report(folder), read_labels(folder)) if sae.format == "saelens" else (None, None)
    if labels is not None and labels.get("digest") != sae.digest:
        labels = None
        Console(stderr=True).print("labels.json belongs to other weights and is not shown", highlight=False)
    if as_json:
        facts = {
            "name": sae.name,
            "digest": sae.digest,
            "format": sae.format,
            "model": sae.model,
            "layer": sae.layer,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "architecture": sae.architecture,
            "activation": sae.activation,
            "why_not_read": sae.why_not_read,
            "config": dict(sae.card),
        }
        typer.echo(json.dumps({**facts, "report": report, "labels": labels}))
        return
    print_sae(sae)
    if report is not None:
        print_measures(report)
    if labels is not None:
        print_features(labels, feature if feature else range(sae.d_sae), None if feature else 20)


def decoder(model: str | None) -> Decode:
    """Text of token ids, by the model's own tokenizer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(model_dir()) if model is None else model)
    return lambda ids: str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _opener(model: str | None, dtype: str, max_model_len: int | None, eager: bool) -> Opener:
    def open_source() -> AbstractContextManager[ActivationSource]:
        return activation_source(model, dtype, max_model_len, eager)

    return open_source
