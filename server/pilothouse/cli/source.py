"""Options shared by the commands that read activations, and the engine they read through."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pilothouse.cli.harbor import HARBOR_CACHE_BYTES, HARBOR_MAX_MODEL_LEN, HARBOR_NAME
from pilothouse.core.errors import StartupError
from pilothouse.core.serving import ActivationSource
from pilothouse.harbor.paths import model_dir

Model = Annotated[str | None, typer.Option(help="Model to read, as `pilothouse serve` takes it; Harbor when absent.")]
Dtype = Annotated[str, typer.Option(help="Weights' type while reading, as vLLM names it.")]
MaxLength = Annotated[int | None, typer.Option("--max-model-len", help="Longest prompt in tokens; the model's own.")]
Eager = Annotated[bool, typer.Option(help="Do not compile: starts sooner, reads slower.")]
Layers = Annotated[str | None, typer.Option(help="Layers joined by commas.")]
Resume = Annotated[bool, typer.Option(help="Go on where an interrupted run left off.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write (.safetensors).")]


@contextmanager
def activation_source(
    model: str | None, dtype: str, max_model_len: int | None, eager: bool
) -> Iterator[ActivationSource]:
    """The serving engine in capture mode, for as long as the block runs."""
    from pilothouse.engine.capture import CapturingEngine

    named, options = engine_choice(model, dtype, max_model_len, eager)
    # Prompts are forwarded once and never met again, so any model does with what Harbor has.
    source = CapturingEngine(*named, **{"kv_cache_memory_bytes": HARBOR_CACHE_BYTES, **options})
    try:
        yield source
    finally:
        source.close()


def engine_choice(
    model: str | None, dtype: str, max_model_len: int | None, eager: bool
) -> tuple[tuple[str, str | None], dict[str, Any]]:
    """(model, served name) and options of an engine without a server; Harbor, which needs little, when None."""
    options: dict[str, Any] = {"dtype": dtype, "enforce_eager": eager}
    if max_model_len is not None:
        options["max_model_len"] = max_model_len
    if model is not None:
        return (model, None), options
    small = {"max_model_len": HARBOR_MAX_MODEL_LEN, "kv_cache_memory_bytes": HARBOR_CACHE_BYTES}
    return (str(model_dir()), HARBOR_NAME), {**small, **options}


def parse_layers(text: str | None) -> list[int] | None:
    """Layer numbers from ``3,4``; None stays None."""
    if text is None:
        return None
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise StartupError(f"--layers takes layer numbers joined by commas, not {text!r}") from None


@contextmanager
def progress_bar(what: str) -> Iterator[Any]:
    """A callback (done, total) that draws a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def kept_in(work: Path) -> Iterator[None]:
    """Around work that Ctrl-C may stop: says then where it is kept."""
    try:
        yield
    except KeyboardInterrupt:
        line = f"stopped; what was done is kept in {work}, and the same command goes on from there"
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
        raise


def model_weights(model: str | None, dtype: str) -> dict[str, str]:
    """What tells a model from others of its name: the type it runs in and, of a folder, a digest of its files' names,
    sizes and times."""
    folder = model_dir() if model is None else Path(model)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found if file.is_file()]
    if not facts:
        return {"dtype": dtype}
    return {"dtype": dtype, "files": f"sha256:{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"}


def write_json(content: Any, path: Path) -> None:
    """Write `content` for people and programs to read; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
