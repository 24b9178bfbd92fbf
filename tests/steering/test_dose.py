"""Doses on a model whose response to a dose is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilothouse.core.directions import Direction
from pilothouse.core.edits import PositionRange
from pilothouse.core.errors import ArtefactError
from pilothouse.core.plans import END, Plan, resolve_positions
from pilothouse.core.serving import Generated, SteeredModel
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.steering import (
    DoseData,
    DoseProbe,
    DosePrompt,
    DoseReport,
    DoseSettings,
    Vector,
    WorkFile,
    dose_bench,
    dose_key,
    load_vector,
    measure_dose,
    pace,
    save_vector,
    with_dose,
)
from pilothouse.steering.dose_plot import write_plots
from pilothouse.steering.dose_setup import control_direction
from pilothouse.steering.pace import Pace

D = 64
AXIS = np.eye(D, dtype=np.float32)[0]
N_PROMPTS = 10


class KnownModel:
    """Steered along AXIS by a, prompt k is answered "yes" when a > k / 10; facts are right while the stream moves less
    than 3, and every steered prediction costs |moved|^2 / 100 nats beside its one. Tokens are characters."""

    shape = ModelShape("org/known", D, 4, (0, 1, 2, 3))

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.texts: list[int] = []

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        if isinstance(item, str):
            return [1, *map(ord, item)]
        assert add_generation_prompt, "an answer is asked for"
        return [1, *map(ord, item[-1]["content"]), 2]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def generate(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], max_tokens: int) -> list[Generated]:
        self.calls.append(len(prompts))
        return [self._answer(list(ids), plan, max_tokens) for ids, plan in zip(prompts, plans, strict=True)]

    def logprobs(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan]) -> list[Float32]:
        self.texts.append(len(prompts))
        return [self._logprobs(ids, plan) for ids, plan in zip(prompts, plans, strict=True)]

    def close(self) -> None: ...

    def _answer(self, ids: list[int], plan: Plan, max_tokens: int) -> Generated:
        moved, question = _moved(plan), self.decode(ids[1:]).strip("\x02")
        if question.startswith("fact"):
            answer = "Paris" if np.linalg.norm(moved) < 3 else "Rome"
        else:
            answer = "Yes!" if moved[0] > int(question) / N_PROMPTS else "no"
        tokens = [ord(letter) for letter in answer][:max_tokens]
        readouts = np.empty((len(ids) + len(tokens), len(plan.readouts)), dtype=np.float32)
        for k, readout in enumerate(plan.readouts):
            readouts[:, k] = sum(row @ moved for row in readout.direction.layers.values())
        readouts[-1] = np.nan
        return Generated(tokens, answer[:max_tokens], "stop", readouts)

    def _logprobs(self, ids: Sequence[int], plan: Plan) -> Float32:
        found = np.full(len(ids), -1.0, dtype=np.float32)
        found[0] = np.nan
        for edit in plan.edits:
            start, stop = resolve_positions(edit.positions, len(ids))
            # A token is predicted at the position before it.
            found[start + 1 : min(stop, len(ids)) + 1] -= float(np.linalg.norm(_moved(plan))) ** 2 / 100
        return found


def _moved(plan: Plan) -> Float32:
    moved = np.zeros(D, dtype=np.float32)
    for edit in plan.edits:
        for layer, coefficient in edit.coefficients.items():
            moved += coefficient * edit.direction.layers[layer]
    return moved


VECTOR = Vector(
    "known", Direction({2: AXIS}), "org/known", "resid_post", None, (2,), {2: 4.0}, None, {"made": "by hand"}
)
DATA = DoseData(
    effect=[DosePrompt(prompt=str(k), expect=("yes",)) for k in range(N_PROMPTS)],
    facts=[DosePrompt.model_validate({"messages": [{"role": "user", "content": "fact"}], "expect": ["Paris"]})],
    neutral=["some text of some length", "another"],
)
SETTINGS = DoseSettings(strengths=(-1, 0.25, 0.5, 1, 2, 4), controls=2)
PROBE = DoseProbe("watch", Direction({3: 2 * AXIS}), lambda raw, prompt_end: float(np.nanmean(raw)) + 10 * prompt_end)


def run(
    path: Path,
    model: KnownModel | None = None,
    vector: Vector = VECTOR,
    settings: DoseSettings = SETTINGS,
    resume: bool = True,
    **more: Any,
) -> DoseReport:
    model = model or KnownModel()
    work = WorkFile.open(path, dose_key(model, vector, DATA, settings, more.get("probes", ())), resume)
    return measure_dose(model, vector, DATA, settings, work, **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.jsonl"


def test_the_curve_is_the_models_known_response(path: Path) -> None:
    model: SteeredModel = KnownModel()
    assert isinstance(model, KnownModel)
    report = run(path, model)
    points = {point.strength: point for point in report.of(None)}
    assert {s: p.effect for s, p in points.items()} == {-1: 0, 0: 0, 0.25: 0.3, 0.5: 0.5, 1: 1, 2: 1, 4: 1}
    assert [points[s].accuracy for s in (0, 2, 4)] == [1, 1, 0]
    for strength, point in points.items():
        assert point.perplexity == pytest.approx(np.exp(1 + strength**2 / 100), rel=1e-5)
    # At .5 half of the best gain is reached; at 4 facts are lost, and perplexity has risen by 17%.
    assert report.recommendation.range == (0.5, 2.0)
    assert report.warning is None
    # All prompts of a measurement go to the engine together.
    assert set(model.calls) == {N_PROMPTS + 1}


def test_random_vectors_of_equal_norm_cost_the_same_and_do_nothing(path: Path) -> None:
    report = run(path)
    points = {(p.strength, p.control): p for p in report.points}
    assert len(points) == 1 + 6 * 3
    for strength in (0.5, 1.0, 2.0, 4.0):
        for number in range(2):
            control = points[strength, number]
            assert control.perplexity == pytest.approx(points[strength, None].perplexity, rel=1e-5)
            assert control.accuracy == points[strength, None].accuracy
        control_effect = report.control_effect(strength)
        assert control_effect is not None
        assert control_effect < points[strength, None].effect
    assert report.control_effect(0) is None


def test_controls_are_random_seeded_and_as_long_as_the_row_at_each_layer() -> None:
    rng = np.random.default_rng(0)
    rows = {layer: (rng.normal(size=D) * (layer + 1)).astype(np.float32) for layer in range(3)}
    found = [control_direction(Direction(rows), (0, 2), seed, number) for seed, number in ((0, 0), (0, 1), (1, 0))]
    again = control_direction(Direction(rows), (0, 2), 0, 0)
    assert again.digest == found[0].digest
    assert len({each.digest for each in found}) == 3
    for each in found:
        assert sorted(each.layers) == [0, 2]
        for layer, row in each.layers.items():
            assert np.linalg.norm(row) == pytest.approx(np.linalg.norm(rows[layer]), rel=1e-5)
            assert abs(row @ rows[layer]) < 0.6 * np.linalg.norm(row) ** 2
    assert abs(found[0].layers[0] @ found[0].layers[2]) < 0.6 * 3 * np.linalg.norm(rows[0]) ** 2


@pytest.mark.parametrize(
    ("positions", "share"),
    [
        # Of 25 tokens the first 12 are the prompt; the 13 others are scored, each at the position before it.
        ("generation", 1.0),
        ("all", 1.0),
        ("prompt", 0.0),
        ("last_prompt", 1 / 13),
        (PositionRange(0, 14), 3 / 13),
        (PositionRange(-2, END), 1.0),
    ],
)
def test_perplexity_is_of_texts_continued_where_their_first_half_is_the_prompt(
    path: Path, positions: Any, share: float
) -> None:
    data = DoseData(DATA.effect, DATA.facts, ["some text of some length"])
    settings = DoseSettings((1.0,), positions=positions, controls=0)
    model = KnownModel()
    work = WorkFile.open(path, dose_key(model, VECTOR, data, settings, ()), True)
    report = measure_dose(model, VECTOR, data, settings, work)
    assert report.of(None)[1].perplexity == pytest.approx(np.exp(1 + share / 100), rel=1e-6)
    assert report.records[1]["neutral"][0]["n_tokens"] == 13


def test_probes_are_reported_with_every_answer_and_in_the_mean(path: Path) -> None:
    report = run(path, probes=[PROBE])
    for point in report.of(None):
        # Both the answer's tokens and the prompt's end read 2a.
        assert point.probes["watch"] == pytest.approx(22 * point.strength)
    item = next(r for r in report.records if r["strength"] == 1 and r["control"] is None)["items"][0]
    assert item["probes"]["watch"] == pytest.approx(22)
    blind = DoseProbe("blind", Direction({3: AXIS}), lambda raw, prompt_end: None)
    assert run(path, probes=[blind], resume=False).points[0].probes == {"blind": None}


def test_every_item_is_kept_with_prompt_answer_and_verdict(path: Path) -> None:
    report = run(path)
    record = next(r for r in report.records if r["strength"] == 0.5 and r["control"] is None)
    effect = [item for item in record["items"] if item["kind"] == "effect"]
    assert [item["ok"] for item in effect] == [True] * 5 + [False] * 5
    assert (effect[0]["prompt"], effect[0]["answer"], effect[9]["answer"]) == ("0", "Yes!", "no")
    assert record["items"][-1]["prompt"] == [{"role": "user", "content": "fact"}]
    assert json.loads(json.dumps(report.records, allow_nan=False)) == list(report.records)


class Interrupted(KnownModel):
    """Stopped by the user in the midst of one measurement."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def generate(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan], max_tokens: int) -> list[Generated]:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return super().generate(prompts, plans, max_tokens)


def test_an_interrupted_run_goes_on_where_it_was(path: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(path, Interrupted(after=8))
    # Cut off while a line was written, that of the last texts: those are predicted again.
    path.write_text(path.read_text()[:-20])
    second, seen = KnownModel(), list[tuple[int, int]]()
    resumed = run(path, second, progress=lambda done, total: seen.append((done, total)))
    assert len(second.calls) == 19 - 8
    assert (len(second.texts), sum(second.texts)) == (19 - 7, 2 * (19 - 7))
    # Each measurement is of 11 prompts and 2 texts; 8 of them were there but for the last one's texts.
    assert seen[:3] == [(13, 247), (26, 247), (39, 247)]
    assert seen[7:11] == [(102, 247), (104, 247), (104, 247), (115, 247)]
    assert seen[-1] == (247, 247)
    whole = run(tmp_path / "whole.jsonl")
    assert resumed.points == whole.points
    assert resumed.records == whole.records
    # All is there now, for more strengths and controls too; and starting over measures all of it anew.
    third = KnownModel()
    assert len(run(path, third, settings=DoseSettings((*SETTINGS.strengths, 3), controls=2)).points) == 22
    assert len(third.calls) == 3
    run(path, fourth := KnownModel(), resume=False)
    assert len(fourth.calls) == 19


def test_an_interruption_costs_a_piece_and_not_a_measurement(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model that takes its time, pieces are small and each is kept as soon as it is there."""
    # Each piece takes the one second that it may take.
    seconds = itertools.count()
    monkeypatch.setattr(pace, "SECONDS", 1.0)
    monkeypatch.setattr(dose_bench, "Pace", lambda most: Pace(most, first=3, clock=lambda: float(next(seconds))))
    with pytest.raises(KeyboardInterrupt):
        run(path, Interrupted(after=2))
    second = KnownModel()
    resumed = run(path, second)
    # Of the 11 prompts of the first measurement 6 had been answered.
    assert second.calls[:2] == [3, 2]
    assert resumed.records == run(tmp_path / "whole.jsonl").records


def test_the_work_of_another_run_is_not_taken_for_this_ones(path: Path) -> None:
    run(path)
    before = path.read_text()
    with pytest.raises(ArtefactError, match=r"work\.jsonl .* another positions"):
        run(path, settings=DoseSettings((1.0,), positions="all"))
    other = Vector("known", Direction({2: 2 * AXIS}), None, "resid_post", None, (2,), {}, None, {})
    with pytest.raises(ArtefactError, match="another vector"):
        run(path, vector=other)
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["not json\n", "[]\n", "{}\n{}\n"])
def test_a_file_that_is_no_work_file_is_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ArtefactError, match="not the work file"):
        run(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"data": DoseData([], DATA.facts, DATA.neutral)}, "no effect prompts"),
        ({"data": DoseData(DATA.effect, [], DATA.neutral)}, "no facts"),
        ({"data": DoseData(DATA.effect, DATA.facts, [])}, "no neutral texts"),
        ({"data": DoseData(DATA.effect, DATA.facts, ["good one", "ab"])}, "neutral text 2 has 3 tokens"),
        ({"settings": DoseSettings((float("nan"),))}, "finite"),
        ({"settings": DoseSettings((1.0,), layers=(1,))}, "no row for layer 1"),
        ({"settings": DoseSettings((1.0,), positions=PositionRange(50, 40))}, "neutral text 1"),
        (
            {"vector": Vector("v", Direction({9: AXIS}), None, "resid_post", None, (9,), {}, None, {})},
            "layers are 0 to 3",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(path: Path, change: dict[str, Any], why: str) -> None:
    asked = {"vector": VECTOR, "data": DATA, "settings": DoseSettings((1.0,), controls=0), **change}
    work = WorkFile(path, [])
    with pytest.raises(ArtefactError, match=why):
        measure_dose(KnownModel(), asked["vector"], asked["data"], asked["settings"], work)


def test_a_range_in_which_random_vectors_do_as_well_comes_with_a_warning(path: Path) -> None:
    class Suggestible(KnownModel):
        """Says yes when its stream is moved anywhere."""

        def _answer(self, ids: list[int], plan: Plan, max_tokens: int) -> Generated:
            if plan.edits and self.decode(ids[1:]).isdigit():
                return Generated([1], "yes", "stop", np.zeros((len(ids) + 1, 0), dtype=np.float32))
            return super()._answer(ids, plan, max_tokens)

    report = run(path, Suggestible())
    assert report.recommendation.range is not None
    assert report.warning is not None
    assert "random vectors" in report.warning
    assert "beyond" not in report.warning
    assert report.summary["warning"] == report.warning


@pytest.mark.parametrize("strengths", [(0.5, 1, 2), (1,)])
def test_a_range_that_ends_where_the_strengths_do_comes_with_a_warning(
    path: Path, strengths: tuple[float, ...]
) -> None:
    report = run(path, settings=DoseSettings(strengths, controls=0))
    assert report.recommendation.range == (min(strengths), max(strengths))
    assert report.warning is not None
    assert "beyond the strengths" in report.warning
    assert "random" not in report.warning


def test_the_summary_goes_into_the_card_and_leaves_the_vector_alone(path: Path, tmp_path: Path) -> None:
    save_vector(VECTOR, tmp_path / "v.safetensors")
    loaded = load_vector(tmp_path / "v.safetensors")
    report = run(path, vector=loaded)
    save_vector(with_dose(report), tmp_path / "v.safetensors")
    written = load_vector(tmp_path / "v.safetensors")
    assert written.digest == VECTOR.digest
    assert written.recommended == (0.5, 2.0)
    assert written.card["made"] == "by hand"
    assert written.card["dose"]["points"][0] == {
        "strength": -1.0,
        "effect": 0.0,
        "accuracy": 1.0,
        "perplexity": pytest.approx(np.exp(1.01)),
        "control": None,
        "probes": {},
    }


@pytest.mark.parametrize("strengths", [SETTINGS.strengths, (1.0,), (-1.0,)], ids=["range", "one", "none"])
def test_the_plots_are_a_png_and_a_page_that_needs_nothing_else(
    path: Path, tmp_path: Path, strengths: tuple[float, ...]
) -> None:
    named = Vector("a.b-c", VECTOR.direction, None, "resid_post", None, (2,), {}, None, {})
    report = run(path, vector=named, settings=DoseSettings(strengths, controls=1), probes=[PROBE])
    png, page = write_plots(report, tmp_path / "plots")
    assert (png.name, page.name) == ("a.b-c.dose.png", "a.b-c.dose.html")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "<script" not in text
    assert 'src="' not in text
    assert "watch" in text
    assert ("Recommended: " in text) == (report.recommendation.range is not None)
    assert ("may go on beyond" in text) == (report.warning is not None)
    assert text.count("<tr") == 1 + len(report.of(None))
    first = page.read_bytes()
    write_plots(report, tmp_path / "plots")
    assert page.read_bytes() == first
