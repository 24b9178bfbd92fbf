"""`pilothouse vectors dose`: how much of a vector is good."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from pilothouse.cli.source import (
    Dtype,
    Eager,
    Layers,
    MaxLength,
    Model,
    Resume,
    engine_choice,
    kept_in,
    model_weights,
    parse_layers,
    progress_bar,
    write_json,
)
from pilothouse.core.edits import PositionRange, Positions
from pilothouse.core.errors import ArtefactError, StartupError
from pilothouse.core.items import Message, read_jsonl
from pilothouse.core.serving import SteeredModel
from pilothouse.core.sites import Float32
from pilothouse.harbor.paths import data_dir, probes_dir
from pilothouse.probing import Probe, load_probes
from pilothouse.steering import (
    DoseData,
    DoseProbe,
    DosePrompt,
    DoseReport,
    DoseSettings,
    WorkFile,
    default_strengths,
    dose_key,
    load_prompts,
    load_texts,
    load_vector,
    measure_dose,
    save_vector,
    with_dose,
)
from pilothouse.steering.dose_plot import write_plots

N_HARBOR_FACTS = 100
N_HARBOR_TEXTS = 50


def dose(
    vector: Annotated[Path, typer.Argument(help="A vector file.")],
    effect: Annotated[
        Path,
        typer.Option(
            help='JSONL, a line: "prompt" or "messages", "expect" (strings, any of them) and "reject" (none of them); '
            'optional "topic", "split". Strings are found as whole words, in any case.'
        ),
    ],
    facts: Annotated[Path | None, typer.Option(help="Facts, like --effect; for Harbor its own questions.")] = None,
    neutral: Annotated[
        Path | None, typer.Option(help='Neutral texts, one a line or JSONL {"text"}; for Harbor its own.')
    ] = None,
    strengths: Annotated[str | None, typer.Option(help="Strengths joined by commas; a range about 0.")] = None,
    positions: Annotated[str, typer.Option(help="generation, all, prompt, last_prompt or FROM:TO.")] = "generation",
    controls: Annotated[int, typer.Option(min=0, help="Random vectors of equal norm to compare with.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    probes: Annotated[Path | None, typer.Option(help="Folder of probes to watch; for Harbor its own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for every item of every strength.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for a plot as PNG and HTML.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Store range and summary in the vector's card.")] = False,
    resume: Resume = True,
    model: Model = None,
    layers: Layers = None,
    dtype: Dtype = "float32",
    max_model_len: MaxLength = None,
    eager: Eager = False,
) -> None:
    """Effect against capability over a range of strengths, with random vectors as control, and the range to use."""
    loaded = load_vector(vector)
    chosen = parse_layers(layers)
    settings = DoseSettings(
        strengths=parse_strengths(strengths) or default_strengths(loaded, chosen or loaded.default_layers),
        positions=parse_positions(positions),
        layers=chosen,
        controls=controls,
        max_tokens=max_tokens,
        seed=seed,
        weights=model_weights(model, dtype),
    )
    data = _data(effect, facts, neutral, harbor=model is None)
    watched = _probes(probes, harbor=model is None)
    work_path = (json_file or vector).with_suffix(".dose.jsonl")
    with steered_model(model, dtype, max_model_len, eager) as steered, progress_bar("measuring strengths") as progress:
        for probe in watched:
            probe.check_fits(steered.shape)
        readers = [dose_probe(probe) for probe in watched]
        work = WorkFile.open(work_path, dose_key(steered, loaded, data, settings, readers), resume)
        with kept_in(work_path):
            report = measure_dose(steered, loaded, data, settings, work, probes=readers, progress=progress)
    _print(report)
    _write(report, vector, json_file, plots, write)
    work.remove()


@contextmanager
def steered_model(model: str | None, dtype: str, max_model_len: int | None, eager: bool) -> Iterator[SteeredModel]:
    """The serving engine without a server, for as long as the block runs."""
    from pilothouse.engine.offline import OfflineEngine

    named, options = engine_choice(model, dtype, max_model_len, eager)
    engine = OfflineEngine(*named, **options)
    try:
        yield engine
    finally:
        engine.close()


def parse_strengths(text: str | None) -> list[float] | None:
    """Strengths from ``0,0.5,1``; None stays None."""
    if text is None:
        return None
    try:
        return [float(strength) for strength in text.split(",")]
    except ValueError:
        raise StartupError(f"--strengths takes numbers joined by commas, not {text!r}") from None


def parse_positions(text: str) -> Positions:
    """A selector's name, or a range ``FROM:TO``."""
    match text:
        case "all" | "prompt" | "generation" | "last_prompt":
            return text
    start, _, stop = text.partition(":")
    try:
        return PositionRange(int(start), int(stop))
    except ValueError:
        raise StartupError(f"--positions takes all, prompt, generation, last_prompt or FROM:TO, not {text!r}") from None


def dose_probe(probe: Probe) -> DoseProbe:
    """`probe` as the dose reads it: scored as the server scores an answer."""

    def score(raw: Float32, prompt_end: float) -> float | None:
        end = float(probe.logits(np.array([prompt_end], dtype=np.float32))[0])
        found = probe.score(probe.stats(probe.logits(raw), end))
        return found if found is not None and math.isfinite(found) else None

    return DoseProbe(probe.name, probe.direction, score, probe.version)


class _Question(BaseModel):
    """One line of Harbor's questions."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    messages: tuple[Message, ...]
    answer: str
    topic: str
    split: str
    entity_frequency: str | None


def harbor_facts() -> list[DosePrompt]:
    """Questions about the world that Harbor was not chosen or judged by, evenly from all topics of split `select`."""
    questions = read_jsonl(data_dir() / "questions.jsonl", _Question)
    asked = [q for q in questions if q.split == "select" and q.entity_frequency is None]
    chosen = asked[:: max(len(asked) // N_HARBOR_FACTS, 1)][:N_HARBOR_FACTS]
    return [DosePrompt(messages=q.messages, expect=(q.answer,), topic=q.topic, split=q.split) for q in chosen]


def _data(effect: Path, facts: Path | None, neutral: Path | None, harbor: bool) -> DoseData:
    if not harbor and (facts is None or neutral is None):
        raise StartupError("--facts and --neutral are needed for a model other than Harbor")
    texts = load_texts(neutral) if neutral else load_texts(data_dir() / "neutral.jsonl")[:N_HARBOR_TEXTS]
    return DoseData(load_prompts(effect), load_prompts(facts) if facts else harbor_facts(), texts)


def _probes(folder: Path | None, harbor: bool) -> Sequence[Probe]:
    if folder is None and not harbor:
        return ()
    return list(load_probes(folder or probes_dir()).values())


def _print(report: DoseReport) -> None:
    console = Console()
    names = list(report.points[0].probes)
    table = Table("strength", "effect", "random", "accuracy", "perplexity", *names)
    low, high = report.recommendation.range or (1.0, -1.0)
    for point in report.of(None):
        control = report.control_effect(point.strength)
        scores = [point.probes[name] for name in names]
        table.add_row(
            f"{point.strength:g}",
            f"{point.effect:.3f}",
            "-" if control is None else f"{control:.3f}",
            f"{point.accuracy:.3f}",
            f"{point.perplexity:.4g}",
            *("-" if score is None else f"{score:.3f}" for score in scores),
            style="green" if low <= point.strength <= high else None,
        )
    console.print(table)
    found = report.recommendation
    if found.range is None:
        console.print(f"no range is recommended: {found.reason}", highlight=False)
    else:
        console.print(f"recommended: {low:g} to {high:g} ({found.reason})", highlight=False)
    if report.warning:
        console.print(f"but {report.warning}", highlight=False)


def _write(report: DoseReport, file: Path, json_file: Path | None, plots: Path | None, card: bool) -> None:
    console, written = Console(), list[Path]()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    if json_file is not None:
        content = {"name": report.vector.name, "created": created, **report.summary, "records": list(report.records)}
        write_json(content, json_file)
        written.append(json_file)
    if plots is not None:
        written += write_plots(report, plots)
    if card:
        if load_vector(file).digest != report.vector.digest:
            raise ArtefactError(f"{file} was replaced by another vector while this one was measured")
        save_vector(with_dose(report), file)
        written.append(file)
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
