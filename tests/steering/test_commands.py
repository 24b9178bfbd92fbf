"""`vectors extract` and `vectors dose` from arguments to files, on models without an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pilothouse.cli import dose as dose_command
from pilothouse.cli import vectors
from pilothouse.core.directions import Direction
from pilothouse.core.edits import PositionRange
from pilothouse.core.plans import Plan
from pilothouse.core.serving import Generated
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.probing import Platt, Probe, save_probe
from pilothouse.steering import Vector, load_vector, save_vector

AXIS = np.array([1, 0, 0, 0], dtype=np.float32)


class Agreeable:
    """Says yes where its stream is moved by 1 or more along AXIS, and knows its facts up to 3."""

    shape = ModelShape("org/agreeable", 4, 2, (0, 1))

    def __init__(self, patience: int = 10**6) -> None:
        self.patience = patience
        self.plans: list[Plan] = []

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        return [1, *(map(ord, item) if isinstance(item, str) else [2, 3, 4])]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def generate(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], max_tokens: int) -> list[Generated]:
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        self.plans += plans
        return [self._answer(len(ids), plan) for ids, plan in zip(prompts, plans, strict=True)]

    def logprobs(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan]) -> list[Float32]:
        return [np.array([np.nan] + [-1.0] * (len(ids) - 1), dtype=np.float32) for ids in prompts]

    def close(self) -> None: ...

    def _answer(self, n_prompt: int, plan: Plan) -> Generated:
        moved = sum(
            c * edit.direction.layers[layer][0] for edit in plan.edits for layer, c in edit.coefficients.items()
        )
        readouts = np.full((n_prompt + 3, len(plan.readouts)), moved, dtype=np.float32)
        readouts[-1] = np.nan
        return Generated(
            [5, 6, 7], ("yes " if moved >= 1 else "no ") + ("right" if moved < 3 else ""), "stop", readouts
        )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a vector, a probe and the three files that a dose is measured on."""
    vector = Vector("agree", Direction({1: AXIS}), None, "resid_post", None, (1,), {}, None, {"made": "by hand"})
    save_vector(vector, tmp_path / "v.safetensors")
    probe = Probe("p", "yes", "high", "mean", 0.5, {1: AXIS}, bias=-1.0, calibration=Platt(kind="platt", a=2.0, b=0.0))
    save_probe(probe, tmp_path / "probes" / "p.safetensors")
    (tmp_path / "effect.jsonl").write_text('{"prompt": "agree?", "expect": ["yes"]}\n')
    (tmp_path / "facts.jsonl").write_text('{"prompt": "fact", "expect": ["right"]}\n')
    (tmp_path / "neutral.txt").write_text("some neutral text\n")
    return tmp_path


def run_dose(
    monkeypatch: pytest.MonkeyPatch, files: Path, *arguments: str, model: Agreeable | None = None
) -> tuple[Result, Agreeable]:
    model = model or Agreeable()

    @contextmanager
    def steered(*options: Any) -> Iterator[Agreeable]:
        yield model

    monkeypatch.setattr(dose_command, "steered_model", steered)
    given = [f"--{name}={files / file}" for name, file in (("effect", "effect.jsonl"), ("facts", "facts.jsonl"))]
    data = [*given, f"--neutral={files / 'neutral.txt'}", f"--probes={files / 'probes'}", "--model=org/agreeable"]
    return CliRunner().invoke(vectors.app, ["dose", str(files / "v.safetensors"), *data, *arguments]), model


def test_a_dose_from_files_to_files(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    before = load_vector(files / "v.safetensors")
    result, model = run_dose(
        monkeypatch,
        files,
        "--strengths=0.5,1,2,4",
        "--controls=2",
        f"--json={files / 'out' / 'd.json'}",
        f"--plots={files / 'plots'}",
        "--write",
        "--positions=1:9",
    )
    assert result.exit_code == 0, result.output
    assert "recommended: 1 to 2" in result.output
    written = load_vector(files / "v.safetensors")
    assert (written.digest, written.recommended, written.card["made"]) == (before.digest, (1.0, 2.0), "by hand")
    raw = json.loads((files / "out" / "d.json").read_text())
    assert raw["recommended"] == [1.0, 2.0]
    assert [(r["strength"], r["control"]) for r in raw["records"]][:4] == [(0.0, None), (0.5, None), (0.5, 0), (0.5, 1)]
    answers = {r["strength"]: r["items"][0]["answer"] for r in raw["records"] if r["control"] is None}
    assert answers == {0.0: "no right", 0.5: "no right", 1.0: "yes right", 2.0: "yes right", 4.0: "yes "}
    # The probe's logit is what the stream moved, less 1, and its calibration doubles that.
    for record in raw["records"]:
        if record["control"] is None:
            assert record["probes"]["p"] == pytest.approx(1 / (1 + np.exp(-2 * (record["strength"] - 1))), rel=1e-5)
    assert sorted(path.name for path in (files / "plots").iterdir()) == ["agree.dose.html", "agree.dose.png"]
    assert {edit.positions for plan in model.plans for edit in plan.edits} == {PositionRange(1, 9)}
    assert [path.name for path in (files / "out").iterdir()] == ["d.json"]


def test_what_was_measured_before_an_interruption_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    arguments = ["--strengths=1,2", "--controls=1"]
    stopped, _ = run_dose(monkeypatch, files, *arguments, model=Agreeable(patience=3))
    assert stopped.exit_code == 130
    work = files / "v.dose.jsonl"
    assert len(work.read_text().splitlines()) == 1 + 2 * 3
    assert str(work) in stopped.output
    other, _ = run_dose(monkeypatch, files, *arguments, "--max-tokens=5")
    assert "max_tokens" in str(other.exception)
    second = Agreeable()
    result, _ = run_dose(monkeypatch, files, *arguments, model=second)
    assert result.exit_code == 0, result.output
    assert second.patience == 10**6 - 2
    assert not work.exists()
    assert load_vector(files / "v.safetensors").recommended is None


def test_where_nothing_works_nothing_is_recommended(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    result, _ = run_dose(monkeypatch, files, "--strengths=-1", "--write")
    assert "no range is recommended" in result.output
    written = load_vector(files / "v.safetensors")
    assert written.recommended is None
    assert written.card["dose"]["recommended"] is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--strengths=1,x"], "--strengths"),
        (["--strengths=nan"], "finite"),
        (["--positions=answer"], "--positions"),
        (["--positions=1:"], "--positions"),
        (["--layers=x"], "--layers"),
    ],
)
def test_bad_arguments_are_refused(
    monkeypatch: pytest.MonkeyPatch, files: Path, arguments: list[str], why: str
) -> None:
    result, _ = run_dose(monkeypatch, files, *arguments)
    assert result.exit_code != 0
    assert why in str(result.exception)


def test_only_harbor_brings_data_of_its_own(files: Path) -> None:
    arguments = ["dose", str(files / "v.safetensors"), f"--effect={files / 'effect.jsonl'}", "--model=org/agreeable"]
    result = CliRunner().invoke(vectors.app, arguments)
    assert "--facts and --neutral" in str(result.exception)
    facts = dose_command.harbor_facts()
    assert len(facts) == 100
    assert len({fact.topic for fact in facts}) > 1
    assert {fact.split for fact in facts} == {"select"}
    assert all(len(fact.expect) == 1 for fact in facts)


def test_extract_sweeps_layers_and_keeps_the_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_source: Callable[..., Any]
) -> None:
    source = make_source({0: 0.02 * AXIS, 2: 5 * AXIS}, noise=1.0)

    @contextmanager
    def reading(*options: Any) -> Iterator[Any]:
        yield source

    monkeypatch.setattr(vectors, "activation_source", reading)
    splits = {"train": 30, "select": 20, "eval": 7}
    lines = [
        {"positive": f"{split} {i}+", "negative": f"{split} {i}", "split": split}
        for split, n in splits.items()
        for i in range(n)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = ["extract", str(tmp_path / "pairs.jsonl"), "--name=v", f"--out={tmp_path / 'v.safetensors'}"]

    def extract(*arguments: str) -> tuple[Vector, str]:
        result = CliRunner().invoke(vectors.app, [*common, *arguments])
        assert result.exit_code == 0, result.output
        return load_vector(tmp_path / "v.safetensors"), result.output

    best, shown = extract("--layers=best", "--method=pca", "--token=-1")
    assert (best.default_layers, best.method, best.card["token"]) == ((2,), "pca", -1)
    assert (best.card["n_pairs"], best.card["n_held_out"]) == (30, 20)
    assert "AUROC" in shown
    swept, _ = extract("--sweep", "--split=eval", "--token=-1")
    assert (swept.default_layers, swept.card["n_pairs"], swept.card["n_held_out"]) == ((0, 2), 7, 20)
    plain, shown = extract("--layers=2")
    assert (plain.card["n_pairs"], "sweep" in plain.card, "AUROC" in shown) == (57, False, False)


def test_extract_writes_every_pair_and_goes_on_after_an_interruption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_source: Callable[..., Any]
) -> None:
    sources: list[Any] = []
    patience = [1]

    @contextmanager
    def reading(*options: Any) -> Iterator[Any]:
        sources.append(source := make_source({2: 5 * AXIS}, noise=1.0))
        read = source.read

        def patient(prompts: Any, layers: Any) -> Any:
            if not patience[0]:
                raise KeyboardInterrupt
            patience[0] -= 1
            return read(prompts, layers)

        source.read = patient
        yield source

    monkeypatch.setattr(vectors, "activation_source", reading)
    lines = [json.dumps({"positive": f"{i}+", "negative": f"{i}", "topic": f"t{i % 2}"}) for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    raw, out = tmp_path / "raw" / "x.json", tmp_path / "v.safetensors"
    arguments = ["extract", str(tmp_path / "pairs.jsonl"), "--name=v", f"--out={out}", "--sweep", f"--json={raw}"]

    stopped = CliRunner().invoke(vectors.app, arguments)
    assert stopped.exit_code == 130
    assert "v.extract, and the same command goes on" in stopped.output.replace("\n", " ")
    assert not out.exists()
    patience[0] = 9
    finished = CliRunner().invoke(vectors.app, arguments)
    assert finished.exit_code == 0, finished.output
    assert [sum(source.batch_sizes) for source in sources] == [16, 60 - 16]
    assert not (tmp_path / "v.extract").exists()

    written, vector = json.loads(raw.read_text()), load_vector(out)
    assert (written["digest"], written["card"]) == (vector.digest, vector.card)
    assert (vector.card["file"], vector.card["weights"]["dtype"]) == ("pairs.jsonl", "float32")
    items = written["items"]
    assert len(items) == 30
    assert sum(item["held_out"] for item in items) == vector.card["n_held_out"] == 9
    assert {item["topic"] for item in items} == {"t0", "t1"}
    # The sweep's verdict can be had again from the raw items alone.
    judged = np.array([item["projections"]["2"] for item in items if item["held_out"]])
    wins = np.mean(judged[:, 0][:, None] > judged[:, 1][None])
    assert vector.card["sweep"][0]["auroc"] == pytest.approx(wins)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--name=a/b"], "cannot be a name"),
        (["--name=v", "--recommended", "2", "1"], "lowest strength"),
        (["--name=v", "--token=first"], "prompt_end"),
        (["--name=v", "--layers=x"], "--layers"),
    ],
)
def test_a_bad_extraction_is_refused_before_an_engine_starts(tmp_path: Path, arguments: list[str], why: str) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"positive": "a", "negative": "b"}')
    common = ["extract", str(tmp_path / "pairs.jsonl"), f"--out={tmp_path / 'v.safetensors'}"]
    result = CliRunner().invoke(vectors.app, [*common, *arguments])
    assert result.exit_code != 0
    assert why in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
