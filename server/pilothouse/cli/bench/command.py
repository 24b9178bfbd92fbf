"""`pilothouse bench`: what steering and reading cost beside plain vLLM, over HTTP, in pairs.

vLLM's own server and ours stay up, the idle ones stopped, and get their bursts in turn. Separate runs of the same code
differ by up to 15%, so a figure is the ratio of two bursts of a round; `bench.report` says the rest.
"""

import asyncio
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pilothouse.cli.bench.artefacts import make_artefacts, probe_name
from pilothouse.cli.bench.cores import off_the_workers
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.machine import device, fast_dtype, machine, versions
from pilothouse.cli.bench.measure import (
    FITTED,
    PEER,
    PROMPT,
    Deadline,
    Servers,
    fit_tokens,
    later_seconds,
    measure_pairs,
    measure_singles,
    warm_up,
)
from pilothouse.cli.bench.peers import measure_peers
from pilothouse.cli.bench.plots import draw
from pilothouse.cli.bench.prompt import measure_prompt_scores
from pilothouse.cli.bench.report import render
from pilothouse.cli.bench.rounds import endless
from pilothouse.cli.bench.scenarios import Scenario, chosen, default_scenarios, full_scenarios, named
from pilothouse.cli.bench.servers import Server, all_stopped, alone, layout_of
from pilothouse.cli.bench.shapes import LLAMA_8B
from pilothouse.cli.bench.summary import memory_of, summarise
from pilothouse.cli.bench.variants import Place, Requests
from pilothouse.core.config import EngineLayout

MINUTES = 29.0
"""What the default may take on a CPU; answers become shorter, then rounds fewer, where it would take longer."""
SCRATCH = Path("bench/scratch")
N_PROMPT_PROBES = 8
_A_LATER_SCENARIO_SECONDS = 900.0


def bench(
    out: Annotated[Path | None, typer.Option("--json", help="Write every pair to this file.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report to this Markdown file, its plots beside it.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All loads and kinds of edits; goes on where it stopped.")
    ] = False,
    models: Annotated[str | None, typer.Option(help="Only these models, joined by commas.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Only these scenarios by name, joined by commas, those of --full too; goes on like it."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs of every comparison; at least 8 to be quoted.")
    ] = None,
    out_tokens: Annotated[
        int | None, typer.Option(min=4, help="Tokens of every answer, however long it takes.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Measure transformers with hooks, and repeng, beside.")] = True,
    seed: int = 0,
) -> None:
    """Measure what steering and reading cost on this machine, beside plain vLLM."""
    where = device()
    every = default_scenarios(where, fast_dtype(), full)
    at_leisure = full or only is not None
    if at_leisure:
        every += full_scenarios(where, fast_dtype())
    scenarios = chosen(every if only is None else named(every, only), models, pairs, out_tokens)
    parameters = {"scenarios": [asdict(s) for s in scenarios], "seed": seed, "peers": peers, "versions": versions()}
    journal = Journal.of_parameters(SCRATCH, parameters) if at_leisure else Journal()
    deadline = Deadline(None if at_leisure or where == "cuda" else MINUTES)
    for number, scenario in enumerate(scenarios):
        later = _A_LATER_SCENARIO_SECONDS * (len(scenarios) - number - 1)
        if not journal.done(scenario=scenario.name, kind="done"):
            began = time.monotonic()
            run_scenario(scenario, journal, where, deadline, later, seed, peers)
            journal.add({"scenario": scenario.name, "kind": "done", "seconds": round(time.monotonic() - began)})
    found = report_of(scenarios, journal, seed)
    Console().print(render(found), markup=False, soft_wrap=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if report is not None:
        plots = draw(report.parent, found["summary"])
        report.write_text(render(found, plots), encoding="utf-8")
    journal.finish()


def report_of(scenarios: Sequence[Scenario], journal: Journal, seed: int) -> dict[str, Any]:
    """What is written with `--json`: every line of the journal, and what follows from them."""
    shapes = {model.key: model for model in (*(scenario.model for scenario in scenarios), LLAMA_8B)}
    return {
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        "summary": summarise(journal.lines, seed),
        "memory": [memory_of(model, EngineLayout()) for model in shapes.values()],
        "items": journal.lines,
    }


def run_scenario(
    scenario: Scenario, journal: Journal, where: str, deadline: Deadline, later: float, seed: int, peers: bool
) -> None:
    """Start a scenario's servers and measure what the journal has not got. later: seconds kept for other scenarios."""
    with tempfile.TemporaryDirectory(prefix="pilothouse-bench-") as folder, ExitStack() as stack:
        model = scenario.model.prepare(Path(folder))
        servers: dict[Place, Server] = {}
        for place in scenario.places:
            Console(stderr=True).print(f"{scenario.name}: starting {place}", highlight=False)
            arguments = arguments_of(scenario, place, model, Path(folder), where, seed)
            with all_stopped(servers):
                servers[place] = stack.enter_context(Server(arguments))
                # At the end all of them are told before any is waited for.
                stack.callback(_interrupt, servers)
                # One after another: what the first compiles the others find.
                asyncio.run(servers[place].wait_until_ready())
        with off_the_workers(server.pid for server in servers.values()):
            asyncio.run(_measure(scenario, servers, journal, where, deadline, later, seed))
        if peers and scenario.peers and not journal.done(scenario=scenario.name, kind=PEER):
            tokens = int(journal.find(scenario=scenario.name, kind=FITTED)[0]["tokens_out"])
            with all_stopped(servers):
                rates = measure_peers(scenario, model, tokens)
            journal.add({"scenario": scenario.name, "kind": PEER, "rates": dict(rates)})


def _interrupt(servers: Servers) -> None:
    for server in servers.values():
        server.interrupt()


def arguments_of(scenario: Scenario, place: Place, model: Path, folder: Path, where: str, seed: int) -> list[str]:
    """How Python starts one of a scenario's servers; its artefacts are made below `folder`."""
    flags = scenario.engine_flags(where)
    if place == "plain":
        return ["-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model), *flags]
    made = make_artefacts(
        folder / f"artefacts-{place}",
        scenario.model.width,
        scenario.layers(place),
        scenario.n_vectors(place),
        seed,
        scenario.needs_sae,
    )
    ours = [*made.arguments, *scenario.our_flags(place)]
    return ["-m", "pilothouse.cli.main", "serve", str(model), *ours, *flags]


async def _measure(
    scenario: Scenario,
    servers: Servers,
    journal: Journal,
    where: str,
    deadline: Deadline,
    later: float,
    seed: int,
) -> None:
    model = scenario.model
    requests = Requests(model.key, model.width, model.depth, scenario.batch)
    prompt_seconds, step_seconds = await warm_up(scenario, servers, requests, seed)
    kept = later + later_seconds(scenario, prompt_seconds, step_seconds)
    tokens, room = scenario.tokens_out, endless
    if scenario.seconds is not None:
        tokens = fit_tokens(scenario, prompt_seconds, step_seconds, deadline.left(scenario.seconds, kept))
        room = partial(deadline.left, math.inf, kept)
    if not journal.done(scenario=scenario.name, kind=FITTED):
        layouts = {place: await _layout(servers, place) for place in scenario.places if place != "plain"}
        journal.add({**_about(scenario, where), "tokens_out": tokens, "layouts": layouts})
    tokens = int(journal.find(scenario=scenario.name, kind=FITTED)[0]["tokens_out"])
    await measure_pairs(scenario, servers, requests, tokens, journal, seed, room)
    if scenario.singles:
        await measure_singles(scenario, servers, requests, journal, seed)
    if scenario.prompts and not journal.done(scenario=scenario.name, kind=PROMPT):
        probes = [probe_name(i) for i in range(N_PROMPT_PROBES)]
        with alone(servers, "ours") as ours:
            found = await measure_prompt_scores(ours, model.key, probes, scenario.prompts, seed)
        for item in found:
            journal.add({"scenario": scenario.name, "kind": PROMPT, **item})


async def _layout(servers: Servers, place: Place) -> dict[str, int]:
    with alone(servers, place) as server:
        return await layout_of(server)


def _about(scenario: Scenario, where: str) -> Mapping[str, Any]:
    """What the report says of a scenario."""
    return {
        "scenario": scenario.name,
        "kind": FITTED,
        "model": scenario.model.key,
        "title": scenario.model.title,
        "dtype": scenario.model.dtype,
        "batch": scenario.batch,
        "tokens_in": scenario.tokens_in,
        "wanted": scenario.tokens_out,
        "rounds": max(c.pairs for c in scenario.comparisons),
        "flags": scenario.engine_flags(where),
        "our_flags": {place: scenario.our_flags(place) for place in scenario.places if place != "plain"},
    }
