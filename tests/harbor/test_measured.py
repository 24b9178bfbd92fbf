"""The committed measurements of Harbor: they follow from their items, belong to these files, and hold on a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from pilothouse.api.presets import load_presets
from pilothouse.cli.evaluate import CONDITION_PROBE, GATED_PRESET
from pilothouse.cli.main import app
from pilothouse.harbor.claims import Bar, Claim
from pilothouse.harbor.paths import presets_file, probes_dir, saes_dir, vectors_dir
from pilothouse.harbor.personas import TONES
from pilothouse.harbor.report import markdown
from pilothouse.probing import load_probe
from pilothouse.steering import load_vector
from pilothouse.steering.sae_file import load_sae

ROOT = Path(__file__).parents[2]
Measured = dict[str, dict[str, Any]]
PROBES = {"truthfulness probe": "truthfulness", "hallucination probe": "hallucination"}


def _claims(path: Path) -> Measured:
    return {claim["name"]: claim for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]}


@pytest.fixture(scope="module")
def committed() -> Measured:
    return _claims(ROOT / "bench" / "harbor.json")


def _share(claim: dict[str, Any], key: str, **wanted: Any) -> float:
    found = [item[key] for item in claim["items"] if all(item[name] == value for name, value in wanted.items())]
    return float(np.mean(found))


def test_the_report_is_that_of_the_measurements(committed: Measured) -> None:
    claims = [
        Claim(
            claim["name"],
            claim["about"],
            claim["measures"],
            [Bar(bar["measure"], bar["low"], bar["high"]) for bar in claim["bars"]],
            claim["items"],
            claim["settings"],
        )
        for claim in committed.values()
    ]
    assert (ROOT / "docs" / "harbor" / "report.md").read_text(encoding="utf-8") == markdown(claims)
    assert [claim.met for claim in claims] == [claim["met"] for claim in committed.values()]


def test_what_was_measured_is_what_is_shipped(committed: Measured) -> None:
    for name in ("honest", *TONES):
        vector = load_vector(vectors_dir() / f"{name}.safetensors")
        assert committed[f"{name} vector"]["settings"]["vector"] == f"sha256:{vector.direction.digest.hex()}"
        low, high = vector.recommended or (0.0, 0.0)
        assert low <= committed[f"{name} vector"]["settings"]["strength"] <= high
    for claim, name in PROBES.items():
        assert committed[claim]["settings"]["version"] == load_probe(probes_dir() / f"{name}.safetensors").version
    sae = load_sae(saes_dir() / "harbor-l3")
    assert committed["SAE"]["settings"]["sae"] == committed["SAE feature"]["settings"]["sae"] == sae.digest
    condition = committed["conditional steering"]["settings"]
    assert (condition["preset"], condition["probe"]) == (GATED_PRESET, CONDITION_PROBE)
    assert condition["version"] == load_probe(probes_dir() / f"{CONDITION_PROBE}.safetensors").version
    assert condition["fields"] == load_presets(str(presets_file()))[GATED_PRESET].fields
    assert condition["vectors"] == [committed["honest vector"]["settings"]["vector"]]


def test_what_a_gate_does_follows_from_the_items(committed: Measured) -> None:
    claim, measures = committed["conditional steering"], committed["conditional steering"]["measures"]
    for arm in ("unsteered", "gated", "ungated"):
        assert measures[f"liar_{arm}"] == _share(claim, f"right_{arm}", label=1)
    assert measures["opened_with_cause"] == _share(claim, "opened", label=1)
    assert measures["opened_without_cause"] == _share(claim, "opened", label=0)
    assert measures["unchanged_without_cause"] == _share(claim, "unchanged", label=0)
    assert measures["unchanged_where_closed"] == _share(claim, "unchanged", opened=False)
    labels = [item["label"] for item in claim["items"]]
    ends = [item["prompt_end"] for item in claim["items"]]
    assert measures["prompt_end_auroc"] == pytest.approx(roc_auc_score(labels, ends), abs=1e-9)
    for item in claim["items"]:
        assert item["split"] == "eval"
        assert item["opened"] == (item["first_open"] is not None)
        assert item["gated"] == item["unsteered"] or not item["unchanged"]


def test_shares_of_answers_follow_from_the_items(committed: Measured) -> None:
    facts = committed["facts"]
    assert facts["measures"]["often_seen_accuracy"] == _share(facts, "right", entity_frequency="often")
    assert facts["measures"]["world_accuracy"] == _share(facts, "right", entity_frequency=None)
    honest = committed["honest vector"]
    for measure, condition in (
        ("liar_unsteered", "liar, unsteered"),
        ("liar_honest", "liar, honest"),
        ("no_persona_honest", "no persona, honest"),
    ):
        assert honest["measures"][measure] == _share(honest, "right", condition=condition)
    for name in TONES:
        claim = committed[f"{name} vector"]
        in_range = [_share(claim, "toned", condition=condition) for condition in ("lowest", "steered", "highest")]
        assert claim["measures"]["toned_in_range_at_least"] == min(in_range)


@pytest.mark.parametrize("name", list(PROBES))
def test_what_probes_tell_apart_follows_from_the_items(committed: Measured, name: str) -> None:
    claim, measures = committed[name], committed[name]["measures"]
    items = claim["items"]
    labels, scores = [item["label"] for item in items], [item["score"] for item in items]
    assert {item["split"] for item in items} == {"eval"}
    assert measures["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    baseline = [item["baseline"] for item in items]
    assert measures["text_only_auroc"] == pytest.approx(roc_auc_score(labels, baseline), abs=2e-3)
    if "auroc_within_rare" in measures:
        rare = [item for item in items if item["bucket"] == "rare"]
        expected = roc_auc_score([item["label"] for item in rare], [item["score"] for item in rare])
        assert measures["auroc_within_rare"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_every_claim_holds_again_on_a_sample(committed: Measured, tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    CliRunner().invoke(app, ["eval", "harbor", "--sample", "60", "--json", str(path)], catch_exceptions=False)
    sample = _claims(path)
    assert list(sample) == list(committed)
    for name, claim in sample.items():
        # Sixty items in fifteen bins are never calibrated.
        for bar in (bar for bar in claim["bars"] if bar["measure"] != "ece"):
            value, before = claim["measures"][bar["measure"]], committed[name]["measures"][bar["measure"]]
            # Sixty items are off by some points, up or down; what was far inside its bar must still be inside.
            assert value == pytest.approx(before, abs=0.12, rel=0.05), (name, bar["measure"])
