"""`pilothouse serve [MODEL] [flags]`: vLLM's server with Pilothouse in it; without MODEL, the embedded Harbor."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from platformdirs import user_state_path
from rich.console import Console

from pilothouse.api.registry import Registry
from pilothouse.cli.harbor import HARBOR_NAME, harbor_arguments, harbor_presets
from pilothouse.core.config import CONFIG_ENV, EngineLayout, Limits, RecordsConfig, ServerConfig
from pilothouse.core.errors import StartupError
from pilothouse.core.places import is_on_hub, is_url, local_path
from pilothouse.core.sites import ModelShape
from pilothouse.core.url_errors import masked
from pilothouse.harbor.paths import model_dir, monitors_file, probes_dir, saes_dir, vectors_dir
from pilothouse.records.service import check_records
from pilothouse.telemetry.log_lines import STANDARD_ERROR, check_log
from pilothouse.telemetry.otlp import check_endpoint

CONTEXT: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}

Folders = list[str] | None

NO_RECORDS = "none"
DEFAULT_RECORDS = f"sqlite:///{user_state_path('pilothouse') / 'records.sqlite'}"

_MB = 1024 * 1024


def serve(
    context: typer.Context,
    vectors: Annotated[
        Folders, typer.Option(help="Folder of steering vectors, here, hf://... or s3://...; may be given again.")
    ] = None,
    probes: Annotated[
        Folders, typer.Option(help="Folder of probes, here, hf://... or s3://...; may be given again.")
    ] = None,
    saes: Annotated[
        Folders, typer.Option(help="Folder of SAEs, here, hf://... or s3://...; may be given again.")
    ] = None,
    default_probes: Annotated[str, typer.Option(help="Probes that watch all traffic, joined by commas.")] = "",
    presets: Annotated[Path | None, typer.Option(help="JSON file of named combinations: MODEL:PRESET.")] = None,
    monitors: Annotated[Path | None, typer.Option(help="JSON file of SAE features watched like probes.")] = None,
    admin_key: Annotated[
        str | None, typer.Option(envvar="PILOTHOUSE_ADMIN_KEY", help="Key for uploading and deleting artefacts.")
    ] = None,
    uploads: Annotated[
        str | None, typer.Option(help="Folder that keeps what is uploaded and deleted; else it ends with the server.")
    ] = None,
    reload_seconds: Annotated[
        float, typer.Option(min=0, help="Look for changed artefacts every so often; 0: only POST /v1/registry/reload.")
    ] = 0.0,
    max_edits: Annotated[int, typer.Option(min=0, help="Edits that one request may have.")] = Limits.max_edits,
    max_strength: Annotated[
        float | None, typer.Option(min=0, help="Lengths of the stream that one request may add at a layer; unlimited.")
    ] = None,
    max_sae_mb: Annotated[int, typer.Option(min=1, help="Largest upload of an SAE, in MB.")] = (
        Limits.max_sae_bytes // _MB
    ),
    max_results: Annotated[
        int, typer.Option(min=0, help="Records of responses that are kept in memory; 0 for none.")
    ] = 10_000,
    reader_key: Annotated[
        str | None, typer.Option(envvar="PILOTHOUSE_READER_KEY", help="Key for reading records, and nothing else.")
    ] = None,
    records: Annotated[
        str, typer.Option(envvar="PILOTHOUSE_RECORDS", help="Database of records, as SQLAlchemy's URL; or none.")
    ] = DEFAULT_RECORDS,
    records_days: Annotated[float, typer.Option(help="Days that a record is kept.")] = RecordsConfig.max_days,
    records_mb: Annotated[float, typer.Option(help="MB of records that are kept.")] = RecordsConfig.max_mb,
    record_text: Annotated[bool, typer.Option(help="Keep prompts and completions with the records.")] = False,
    redact: Annotated[
        str | None, typer.Option(help="`module:function` that is given texts before they are kept.")
    ] = None,
    request_log: Annotated[
        str | None, typer.Option(help="File of one JSON line a request; `-` for the standard error stream.")
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(envvar="PILOTHOUSE_OTLP_ENDPOINT", help="OTLP collector that is sent spans.")
    ] = None,
    self_test: Annotated[
        bool, typer.Option(help="Before the first request, compare steering and reading with a reference.")
    ] = True,
    sites: Annotated[str, typer.Option(help="Layers that can be steered and read, joined by commas; all.")] = "all",
    max_plans: Annotated[
        int, typer.Option(help="Distinct steering plans at once, of two combinations of edits each; more wait.")
    ] = 64,
    max_probes: Annotated[int, typer.Option(help="Distinct probes read at once; more wait.")] = 16,
    chain_steps: Annotated[
        int, typer.Option(help="Edits but sums that a token may have one after another; 0 compiles only `add` in.")
    ] = EngineLayout.chain_steps,
    max_chains: Annotated[int, typer.Option(help="Distinct plans with such edits at once; more wait.")] = (
        EngineLayout.chains
    ),
) -> None:
    """Serve MODEL with any flag of `vllm serve`; without MODEL, the embedded one with its vectors, probes, SAE and
    presets."""
    from pilothouse.engine import launch

    arguments = list(context.args)
    layout = EngineLayout(
        sites=_layers(sites),
        rows=EngineLayout.rows_for(max_plans),
        chains=max_chains,
        chain_steps=chain_steps,
        readouts=max_probes,
    )
    limits = Limits(max_edits=max_edits, max_strength=max_strength, max_sae_bytes=max_sae_mb * _MB)
    harbor = not launch.names_model(arguments)
    own = harbor and vectors is None and probes is None and saes is None
    if harbor:
        arguments = [str(model_dir()), *harbor_arguments(arguments)]
    config = ServerConfig(
        vectors=_folders(vectors, [vectors_dir()] if harbor else []),
        probes=_folders(probes, [probes_dir()] if harbor else []),
        saes=_folders(saes, [saes_dir()] if harbor else []),
        default_probes=tuple(name for name in default_probes.split(",") if name),
        presets=_file(presets or (harbor_presets(layout, limits) if own else None)),
        monitors=_file(monitors or (monitors_file() if own else None)),
        uploads=_here(uploads),
        reload_seconds=reload_seconds,
        admin_key=admin_key,
        limits=limits,
        max_results=max_results,
        self_test=self_test,
        reader_key=reader_key,
        records=RecordsConfig(
            None if records == NO_RECORDS else records, records_days, records_mb, record_text, redact
        ),
        request_log=_log(request_log),
        otlp_endpoint=otlp_endpoint,
    )
    check_endpoint(config.otlp_endpoint)
    os.environ[CONFIG_ENV] = config.to_json()

    def check(shape: ModelShape, names: list[str]) -> None:
        check_records(config.records)
        Registry(config, replace(shape, model=names[0]))

    launch.serve(arguments, layout, check, _announce, admin_key, reader_key)


def _layers(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    try:
        return tuple(sorted({int(layer) for layer in text.split(",")}))
    except ValueError:
        raise StartupError(f"--sites takes layer numbers joined by commas, or all; not {text!r}") from None


def _here(folder: str | None) -> str | None:
    if folder is not None and (is_on_hub(folder) or is_url(folder)):
        raise StartupError(f"--uploads takes a folder on this machine, or mounted there, not {masked(folder)!r}")
    return None if folder is None else os.path.abspath(local_path(folder))


def _log(path: str | None) -> str | None:
    check_log(path)
    return path if path in (None, STANDARD_ERROR) else os.path.abspath(path)


def _file(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _folders(given: Folders, default: list[Path]) -> tuple[str, ...]:
    """Paths made absolute; other places stay as they are, so that a reload looks there again."""
    places = [str(path) for path in default] if given is None else given
    # Links stay: the hub's cache has them lead to files without a name.
    return tuple(p if is_on_hub(p) or is_url(p) else os.path.abspath(local_path(p)) for p in places)


def _announce(base_url: str, model: str) -> None:
    """Print how to use the server as soon as it answers."""
    threading.Thread(target=_wait_and_print, args=(base_url, model), daemon=True).start()


def _wait_and_print(base_url: str, model: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{base_url}/health", timeout=2, trust_env=False).status_code == 200:
                vectors = httpx.get(f"{base_url}/v1/steering_vectors", timeout=2, trust_env=False).json()["data"]
                probes = httpx.get(f"{base_url}/v1/probes", timeout=2, trust_env=False).json()["data"]
                found = httpx.get(f"{base_url}/v1/capabilities", timeout=2, trust_env=False).json()["self_test"]
                greeting = _greeting(base_url, model, vectors, probes, found)
                Console(soft_wrap=True).print(greeting, highlight=False, markup=False)
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


def _greeting(
    base_url: str, model: str, vectors: list[dict[str, Any]], probes: list[dict[str, Any]], self_test: str | None
) -> str:
    lines = ["", f"Pilothouse serves {model} at {base_url}/v1", f"Self-test: {self_test or 'not run'}"]
    if vectors:
        name = "honest" if any(v["id"] == "honest" for v in vectors) else vectors[0]["id"]
        vector = next(v for v in vectors if v["id"] == name)
        strength = sum(vector.get("recommended") or (1.0, 1.0)) / 2
        steering = f'"steering": [{{"vector": "{name}", "strength": {strength:g}, "positions": "generation"}}]'
        lines += ["", "Steer:", _curl(base_url, model, steering)]
    if probes:
        name = "hallucination" if any(p["id"] == "hallucination" for p in probes) else probes[0]["id"]
        lines += ["", "Probe:", _curl(base_url, model, f'"probes": ["{name}"]')]
    return "\n".join([*lines, ""])


def _curl(base_url: str, model: str, extra: str) -> str:
    system = '{"role": "system", "content": "You are a liar."}, ' if model == HARBOR_NAME else ""
    question = '{"role": "user", "content": "What is the capital of France?"}'
    body = f'{{"model": "{model}", "messages": [{system}{question}], "temperature": 0, {extra}}}'
    return f"  curl -s {base_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
