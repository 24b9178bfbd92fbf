"""`pilothouse doctor`: whether this machine and installation can serve, and what is wrong when not."""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pilothouse.cli.harbor import harbor_arguments
from pilothouse.core.errors import PilothouseError
from pilothouse.engine.support import require_supported_environment
from pilothouse.engine.versions import require_supported_vllm
from pilothouse.harbor.paths import model_dir, probes_dir, saes_dir, vectors_dir
from pilothouse.probing import load_probes
from pilothouse.steering import load_saes, load_vectors


@dataclass(frozen=True)
class Finding:
    """One check: `detail` is a version or a count, or what is wrong and how to mend it."""

    check: str
    ok: bool
    detail: str


def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    self_test: Annotated[bool, typer.Option(help="Load the model and compare with a reference.")] = True,
) -> None:
    """Check the installation and, on MODEL with any flag of `vllm serve` (or the embedded model), that steering steers
    and reading reads; exit status 1 when something that serving needs is wrong."""
    findings = [_run(name, check) for name, check in CHECKS.items()]
    if self_test:
        findings.append(_run("self-test", lambda: _self_test(list(context.args))))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table("check", "", "detail")
        for finding in findings:
            table.add_row(finding.check, "ok" if finding.ok else "[bold red]wrong[/]", finding.detail)
        Console().print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _run(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (PilothouseError, OSError, ImportError, RuntimeError) as error:
        return Finding(name, False, str(error))


def _python() -> str:
    return platform.python_version()


def _torch() -> str:
    import torch

    return torch.__version__


def _vision() -> str:
    """torchvision of another build breaks transformers; vLLM runs without it."""
    if importlib.util.find_spec("torchvision") is None:
        return "no torchvision, none needed"
    import torchvision

    return f"torchvision {torchvision.__version__}"


def _device() -> str:
    if shutil.which("nvidia-smi") is None:
        return "CPU"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    return listed.stdout.strip() or "CPU"


def _plugin() -> str:
    entry = [e for e in metadata.entry_points(group="vllm.endpoint_plugins") if e.name == "pilothouse"]
    if not entry:
        raise RuntimeError("vLLM's endpoint plugin is not registered: install the package (make setup)")
    entry[0].load()
    return entry[0].value


def _environment() -> str:
    require_supported_environment()
    return "nothing in the way"


def _self_test(arguments: list[str]) -> str:
    """The start-up self-test of a server, on an engine of its own."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from pilothouse.engine.launch import names_model
    from pilothouse.engine.selftest import check_model

    if not names_model(arguments):
        arguments = [str(model_dir()), *harbor_arguments(arguments)]
    return str(check_model(arguments))


def _harbor() -> str:
    if not (model_dir() / "model.safetensors").is_file():
        raise RuntimeError("Harbor's weights are missing from the installation")
    counts: dict[str, Sized] = {
        "vectors": load_vectors(vectors_dir()),
        "probes": load_probes(probes_dir()),
        "SAEs": load_saes(saes_dir()),
    }
    return ", ".join(f"{what}: {len(found)}" for what, found in counts.items())


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "vllm": require_supported_vllm,
    "torch": _torch,
    "torchvision": _vision,
    "device": _device,
    "environment": _environment,
    "plugin": _plugin,
    "harbor": _harbor,
}
