"""`pilothouse eval`: what is claimed of the embedded model, measured again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pilothouse.api.plans import Planner
from pilothouse.api.presets import load_presets
from pilothouse.api.registry import Registry
from pilothouse.cli.harbor import HARBOR_NAME
from pilothouse.cli.source import activation_source, progress_bar, write_json
from pilothouse.core.config import EngineLayout, Limits, ServerConfig
from pilothouse.core.sites import ModelShape
from pilothouse.harbor.answers import Question, embedded_model
from pilothouse.harbor.claims import Claim, table
from pilothouse.harbor.claims_answers import facts_claim, honest_claim, tone_claims
from pilothouse.harbor.claims_condition import Condition, condition_claim
from pilothouse.harbor.claims_probes import doubt_claim, judged, own_answers, truth_claim, with_ids
from pilothouse.harbor.claims_sae import feature_claim, sae_claim
from pilothouse.harbor.datasets import load_lines
from pilothouse.harbor.paths import data_dir, presets_file, probes_dir, saes_dir, vectors_dir
from pilothouse.harbor.personas import TONES
from pilothouse.harbor.report import write_report
from pilothouse.harbor.sae_effect import SAE_NAME, load_effect
from pilothouse.probing import load_probe
from pilothouse.probing.evaluation import evaluate_probe
from pilothouse.probing.report import write_card
from pilothouse.probing.statements import load_statements
from pilothouse.steering import load_vector
from pilothouse.steering.sae_file import load_sae

GATED_PRESET, UNGATED_PRESET = "honest-if-asked-to-lie", "honest"
CONDITION_PROBE = "asked-to-lie"

app = typer.Typer(no_args_is_help=True)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the report, its picture and probe cards.")]
Sample = Annotated[int | None, typer.Option(min=20, help="About so many items of each kind; all when absent.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write every item with its split, score and answer.")]


@app.callback()
def evaluations() -> None:
    """Measure claims again, from the committed files."""


@app.command("harbor")
def harbor(out: Out = None, json_path: Json = None, sample: Sample = None) -> None:
    """Measure every claim that is made of the embedded model; exit status 1 when a bar is missed."""
    claims = list(_claims(sample, out))
    _print(claims)
    if json_path is not None:
        write_json({"model": HARBOR_NAME, "sample": sample, "claims": [c.as_json for c in claims]}, json_path)
    if out is not None:
        write_report(claims, out)
    if not all(claim.met for claim in claims):
        raise typer.Exit(1)


def _claims(sample: int | None, cards: Path | None) -> Iterator[Claim]:
    questions = _questions(sample)
    doubt = load_probe(probes_dir() / "hallucination.safetensors")
    truth = load_probe(probes_dir() / "truthfulness.safetensors")
    sae = load_sae(saes_dir() / SAE_NAME)
    model = embedded_model()
    try:
        yield facts_claim(model, questions)
        yield honest_claim(model, questions, load_vector(vectors_dir() / "honest.safetensors"))
        vectors = [load_vector(vectors_dir() / f"{name}.safetensors") for name in TONES]
        yield from tone_claims(model, questions, vectors, load_lines("tones"))
        yield feature_claim(model, sae, load_effect(saes_dir() / SAE_NAME), questions, load_lines("tones"))
        yield condition_claim(model, questions, shipped_condition(model.shape))
        # The controls of the probe are trained, so every answer is needed.
        answers, online = own_answers(model, load_lines("questions"), doubt)
    finally:
        model.close()
    answers = with_ids(answers)
    scores = {str(item.id): score for item, score in zip(answers, online, strict=True) if score is not None}
    statements = [item for item in load_statements(data_dir() / "statements.jsonl") if item.text is not None]
    with activation_source(None, "float32", None, False) as source, progress_bar("probes") as progress:
        evaluation = evaluate_probe(source, truth, judged(with_ids(statements), sample), progress=progress)
        yield truth_claim(evaluation)
        if cards is not None:
            write_card(evaluation, cards / "truthfulness")
        evaluation = evaluate_probe(source, doubt, judged(answers, sample), progress=progress)
        yield doubt_claim(evaluation, scores)
        if cards is not None:
            write_card(evaluation, cards / "hallucination")
        texts = [line for line in load_lines("corpus") if line["split"] == "eval"]
        yield sae_claim(source, sae, saes_dir() / SAE_NAME, texts if sample is None else texts[:sample])


def shipped_condition(shape: ModelShape) -> Condition:
    """The preset that is steered under a condition, and the one without: planned as a server plans them."""
    vectors, probes, saes = ((str(folder),) for folder in (vectors_dir(), probes_dir(), saes_dir()))
    config = ServerConfig(vectors, probes, saes)
    planner = Planner(Registry(config, shape), EngineLayout(), Limits())
    presets = load_presets(str(presets_file()))
    gated, ungated = (planner.plan(presets[name].fields).plan for name in (GATED_PRESET, UNGATED_PRESET))
    probe = load_probe(probes_dir() / f"{CONDITION_PROBE}.safetensors")
    return Condition(GATED_PRESET, presets[GATED_PRESET].fields, gated, ungated, probe)


def _questions(sample: int | None) -> list[Question]:
    found = load_lines("questions")
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in found:
        groups.setdefault((str(question["entity_frequency"]), question["split"]), []).append(question)
    if sample is None:
        return found
    return [q for group in groups.values() for q in group[:: max(1, len(group) // sample)]]


def _print(claims: list[Claim]) -> None:
    shown = Table("claim", "measure", "measured", "bar", "", title="What Harbor can do")
    for row in table(claims):
        shown.add_row(*row)
    Console().print(shown)
