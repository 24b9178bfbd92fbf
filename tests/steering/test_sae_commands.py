"""`pilothouse sae` from arguments to files, on a model without an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pilothouse.cli import saes
from pilothouse.core.errors import ArtefactError, StartupError
from pilothouse.steering import load_saes

AXIS = np.array([1, 0, 0, 0, 0, 0], dtype=np.float32)


class Planted:
    """The character model, whose stream has one dimension for each of the six letters a to f; reads `patience` times,
    then is interrupted."""

    def __init__(self, source: Any, patience: int = 10**6) -> None:
        self.shape, self.encode, self.close = source.shape, source.encode, source.close
        self.patience = patience
        self.n_read = 0

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Any]]:
        if not self.patience:
            raise KeyboardInterrupt
        self.patience -= 1
        self.n_read += len(prompts)
        return [{layer: self.stream(prompt) for layer in layers} for prompt in prompts]

    def stream(self, prompt: Sequence[int]) -> Any:
        rows = np.full((len(prompt), 6), 0.5, dtype=np.float32)
        for i, token in enumerate(prompt):
            rows[i, (token - ord("a")) % 6] += 5 + i / 10
        rows[0] = 1e4
        return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [
        {
            "text": "".join(rng.choice(list("abcdef"), 12)),
            "split": "eval" if i % 5 == 0 else "train",
            "topic": f"t{i % 2}",
        }
        for i in range(150)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, make_source: Callable[..., Any]
) -> Callable[..., tuple[Result, list[Planted]]]:
    """Runs a command; with it come the sources that were opened, each of which reads so many times."""

    def run_command(*arguments: Any, patience: int = 10**6) -> tuple[Result, list[Planted]]:
        opened: list[Planted] = []

        @contextmanager
        def reading(*options: Any) -> Iterator[Planted]:
            opened.append(Planted(make_source({1: AXIS, 2: AXIS}), patience))
            yield opened[-1]

        monkeypatch.setattr(saes, "activation_source", reading)
        monkeypatch.setattr(saes, "decoder", lambda model: lambda ids: "".join(map(chr, ids)))
        return CliRunner().invoke(saes.app, [str(argument) for argument in arguments]), opened

    return run_command


def options(data: Path, *more: str) -> list[str]:
    small = [
        "--layer=2",
        "--width=8",
        "--k=1",
        "--tokens=20000",
        "--batch=64",
        "--rate=0.02",
        "--model=org/character-model",
    ]
    return ["train", str(data), "--name=letters", f"--out={data.parent / 'saes'}", *small, *more]


def test_train_label_and_info(data: Path, run: Callable[..., tuple[Result, list[Planted]]]) -> None:
    raw, folder = data.parent / "raw.json", data.parent / "saes" / "letters"
    stopped, opened = run(*options(data), patience=2)
    assert stopped.exit_code == 130
    assert "letters.train, and the same command goes on" in stopped.output.replace("\n", " ")
    done = opened[0].n_read
    result, opened = run(*options(data, f"--json={raw}"))
    assert result.exit_code == 0, (result.output, result.exception)
    assert opened[0].n_read == 150 - done > 0
    assert [path.name for path in folder.parent.iterdir()] == ["letters"]

    report = json.loads(raw.read_text())
    assert report == json.loads((folder / "report.json").read_text())
    assert report["held_out"]["explained_variance"] > 0.9
    assert (report["train"]["tokens"], report["held_out"]["tokens"]) == (120 * 12, 30 * 12)
    assert (report["model"], report["layer"], report["settings"]["steps"]) == ("org/character-model", 2, 312)
    assert report["data"]["train"]["texts"] == 120
    assert "explained variance" in result.output
    sae = load_saes(folder.parent)["letters"]
    assert (sae.layer, sae.d_in, sae.d_sae, sae.model) == (2, 6, 8, "org/character-model")

    result, _ = run("label", folder, data, "--top=4", "--model=org/character-model")
    assert result.exit_code == 0, (result.output, result.exception)
    labels = json.loads((folder / "labels.json").read_text())
    assert (labels["digest"], labels["tokens"], labels["top"]) == (sae.digest, 150 * 12, 4)
    named = {feature["shared"]["value"] for feature in labels["features"] if feature["shared"]}
    assert len(named & set("abcdef")) >= 5
    for feature in labels["features"]:
        if feature["shared"] and feature["shared"]["rule"] == "token":
            assert all(len(example["before"]) > 5 for example in feature["examples"])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["letters"]

    shown, _ = run("info", folder)
    assert 'token "' in shown.output
    assert "held out" in shown.output
    whole, _ = run("info", folder, "--json")
    printed = json.loads(whole.output)
    assert (printed["digest"], printed["labels"], printed["report"]) == (sae.digest, labels, report)
    again, _ = run(*options(data))
    assert isinstance(again.exception, ArtefactError)
    assert "exists already" in str(again.exception)


@pytest.mark.parametrize(
    ("more", "kind", "why"),
    [
        (["--layer=9"], ArtefactError, "layer 9 has no site"),
        (["--width=0"], StartupError, "--width"),
        (["--k=9"], StartupError, "features"),
        (["--device=abacus"], StartupError, "--device abacus cannot be used"),
        (["--name=a/b"], ArtefactError, "cannot be a name"),
    ],
)
def test_bad_arguments_are_refused(
    data: Path, run: Callable[..., tuple[Result, list[Planted]]], more: list[str], kind: type[Exception], why: str
) -> None:
    result, _ = run(*options(data, *more))
    assert isinstance(result.exception, kind)
    assert why in str(result.exception)


def test_the_folder_may_be_named_itself(data: Path, run: Callable[..., tuple[Result, list[Planted]]]) -> None:
    result, _ = run(*options(data, f"--out={data.parent / 'letters'}", "--tokens=64"))
    assert result.exit_code == 0, (result.output, result.exception)
    assert (data.parent / "letters" / "cfg.json").is_file()
    result, _ = run("label", data.parent / "letters", data, "--split=none")
    assert "no text has split 'none'" in str(result.exception)
