"""Options shared by the commands that read activations, and the engine they read through."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pilothouse.cli.harbor import HARBOR_NAME
from pilothouse.core.errors import StartupError
from pilothouse.core.serving import ActivationSource
from pilothouse.harbor.paths import model_dir

Model = Annotated[str | None, typer.Option(help="Model to read, as `pilothouse serve` takes it; Harbor when absent.")]
Dtype = Annotated[str, typer.Option(help="Weights' type while reading, as vLLM names it.")]
MaxLength = Annotated[int | None, typer.Option("--max-model-len", help="Longest prompt in tokens; the model's own.")]
Eager = Annotated[bool, typer.Option(help="Do not compile: starts sooner, reads slower.")]
Layers = Annotated[str | None, typer.Option(help="Layers joined by commas.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write (.safetensors).")]


@contextmanager
def activation_source(
    model: str | None, dtype: str, max_model_len: int | None, eager: bool
) -> Iterator[ActivationSource]:
    """The serving engine in capture mode, for as long as the block runs."""
    from pilothouse.engine.capture import CapturingEngine

    options: dict[str, Any] = {"dtype": dtype, "enforce_eager": eager, "kv_cache_memory_bytes": 256 * 1024 * 1024}
    if max_model_len is not None:
        options["max_model_len"] = max_model_len
    if model is None:
        options.setdefault("max_model_len", 1024)
        source = CapturingEngine(str(model_dir()), HARBOR_NAME, **options)
    else:
        source = CapturingEngine(model, **options)
    try:
        yield source
    finally:
        source.close()


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
