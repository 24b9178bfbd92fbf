"""`probes train`, `eval`, `split` and `info` from arguments to files, on a model without an engine."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from pilothouse.cli import probes
from pilothouse.core.errors import ArtefactError
from pilothouse.probing import load_probe

AXIS = np.array([0, 2.5, 0, 0], dtype=np.float32)


class Source:
    """What the commands read through, and how often."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.made: list[Any] = []
        self.patience = 10**6

    @contextmanager
    def __call__(self, model: str | None, dtype: str, max_model_len: int | None, eager: bool) -> Iterator[Any]:
        source = self.make({1: AXIS, 2: AXIS})
        read = source.read

        def until_interrupted(prompts: Any, layers: Any) -> Any:
            if source.prompts_read >= self.patience:
                raise KeyboardInterrupt
            return read(prompts, layers)

        source.read = until_interrupted
        self.made.append(source)
        yield source


@pytest.fixture
def source(make_source: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Source:
    made = Source(make_source)
    monkeypatch.setattr(probes, "activation_source", made)
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two hundred statements of a hundred facts in four topics, some of them about rarely seen entities."""
    path = tmp_path / "items.jsonl"
    lines = [
        {
            "text": f"{'+' if i % 2 else '-'}statement {i}",
            "label": i % 2,
            "topic": f"t{(i // 2) % 4}",
            "group": f"f{i // 2}",
            "bucket": "rare" if (i // 2) % 3 == 0 else "common",
        }
        for i in range(200)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(probes.app, [str(argument) for argument in arguments])
    if result.exit_code != exit_code and result.exception is not None:
        raise result.exception
    assert result.exit_code == exit_code
    return result


def test_from_items_to_a_probe_to_its_card(source: Source, data: Path, tmp_path: Path) -> None:
    probe_file = tmp_path / "out" / "p.safetensors"
    trained = run("train", data, "--name", "p", "--out", probe_file, "--json", tmp_path / "train.json")
    assert (
        "threshold at 1% false positives: a threshold at 0.01 false positives needs 100 benign items" in trained.stdout
    )
    probe = load_probe(probe_file)
    assert probe.aggregate == "last"
    assert not probe_file.with_suffix(".work").exists()
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["version"] == probe.version
    assert {item["split"] for item in found["items"]} == {"train", "select", "calibrate", "eval"}
    judged = [item for item in found["items"] if item["split"] == "eval"]
    area = roc_auc_score([item["label"] for item in judged], [item["score"] for item in judged])
    assert area == pytest.approx(probe.card["metrics"]["auroc"])

    run("eval", probe_file, data, "--json", tmp_path / "eval.json", "--save-metrics")
    folder = tmp_path / "out" / "p.card"
    assert {path.name for path in folder.iterdir()} == {
        "card.html",
        "card.md",
        "reliability.png",
        "roc.png",
        "scores.png",
    }
    evaluation = json.loads((tmp_path / "eval.json").read_text())
    by_id = {item["id"]: item for item in judged}
    assert {item["id"] for item in evaluation["items"]} == set(by_id)
    for item in evaluation["items"]:
        assert (item["split"], item["label"]) == ("eval", by_id[item["id"]]["label"])
        assert item["score"] == pytest.approx(by_id[item["id"]]["score"])
    metrics = evaluation["metrics"]
    assert metrics["auroc"] == pytest.approx(area)
    assert metrics["auroc_interval"]["unit"] == "group"
    assert set(metrics["by_bucket"]) == {"rare", "common"}
    assert set(metrics["held_out_topic"]["topics"]) == {"t0", "t1", "t2", "t3"}
    saved = load_probe(probe_file)
    assert saved.version == probe.version
    assert saved.card["metrics"]["brier"] == metrics["brier"]
    assert saved.card["metrics"]["thresholds"] == probe.card["metrics"]["thresholds"]
    shown = run("info", probe_file).stdout
    assert probe.version in shown
    assert "brier" in shown


def test_a_training_that_is_stopped_goes_on(source: Source, data: Path, tmp_path: Path) -> None:
    command = ["train", data, "--name", "p", "--layers", "1,2", "--out", tmp_path / "p.safetensors"]
    source.patience = 100
    run(*command, exit_code=130)
    assert (tmp_path / "p.work").is_dir()
    assert not (tmp_path / "p.safetensors").exists()
    source.patience = 10**6
    run(*command)
    run(*command[:-1], tmp_path / "whole.safetensors")
    first, second, whole = (made.prompts_read for made in source.made)
    assert first >= 100
    assert first + second == whole
    assert not (tmp_path / "p.work").exists()
    assert load_probe(tmp_path / "p.safetensors").version == load_probe(tmp_path / "whole.safetensors").version


def test_a_cache_that_was_asked_for_is_kept(source: Source, data: Path, tmp_path: Path) -> None:
    command = ["train", data, "--name", "p", "--layers", "1", "--out", tmp_path / "p.safetensors"]
    for _ in range(2):
        run(*command, "--cache", tmp_path / "cache")
    assert [made.prompts_read > 0 for made in source.made] == [True, False]
    assert (tmp_path / "cache").is_dir()


def test_every_choice_reaches_the_probe(source: Source, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    choices = ["--method", "mass_mean_whitened", "--aggregate", "worst_rolling", "--calibration", "isotonic"]
    more = ["--alarm", "high", "--label", "false", "--seed", "7", "--split-by", "topic", "--token", "mean"]
    run("train", data, "--name", "p", "--out", out, "--layers", "1,2", "--fpr", "0.05", *choices, *more)
    card = load_probe(out).card
    assert (card["method"], card["aggregate"], card["token"]) == ("mass_mean_whitened", "worst_rolling", "mean")
    assert (card["calibration"]["kind"], card["alarm"], card["label"]) == ("isotonic", "high", "false")
    assert (card["seed"], card["split_by"], sorted(card["layers"])) == (7, "topic", [1, 2])
    assert card["threshold"] == card["metrics"]["thresholds"]["0.05"]["threshold"]


def test_splits_are_named_once_for_all_commands(source: Source, data: Path, tmp_path: Path) -> None:
    named = tmp_path / "split.jsonl"
    run("split", data, "--out", named, "--seed", "5", "--by", "topic")
    lines = [json.loads(line) for line in named.read_text().splitlines()]
    topics: dict[str, set[str]] = {}
    for line in lines:
        topics.setdefault(line["topic"], set()).add(line["split"])
    assert all(len(splits) == 1 for splits in topics.values())
    assert {line["split"] for line in lines} == {"train", "select", "calibrate", "eval"}
    run("train", named, "--name", "p", "--layers", "1", "--out", tmp_path / "p.safetensors", "--seed", "99")
    sizes = load_probe(tmp_path / "p.safetensors").card["metrics"]["n"]
    assert sizes == {split: sum(line["split"] == split for line in lines) for split in sizes}


def test_the_layout_of_geometry_of_truth_is_read(source: Source, tmp_path: Path) -> None:
    table = tmp_path / "cities.csv"
    rows = [f"{'+' if i % 2 else '-'}city {i},{i % 2},{i}" for i in range(120)]
    table.write_text("\n".join(["statement,label,population", *rows]))
    run("train", table, "--name", "p", "--layers", "1", "--out", tmp_path / "p.safetensors")
    run("eval", tmp_path / "p.safetensors", table, "--json", tmp_path / "eval.json")
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["metrics"]["auroc"] > 0.9
    assert {item["topic"] for item in found["items"]} == {"cities"}


def test_the_items_that_trained_it_are_no_measure_of_a_probe(source: Source, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    run("train", data, "--name", "p", "--layers", "1", "--out", out)
    with pytest.raises(ArtefactError, match="--split eval"):
        run("eval", out, data, "--split", "all", "--save-metrics")
    with pytest.raises(ArtefactError, match="no chats"):
        run("eval", out, data, "--only", "chats")
