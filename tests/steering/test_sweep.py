"""Layers are judged on pairs that their rows were not made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering import ContrastPair, Recipe, extract_vector, load_vector, save_vector
from pilothouse.steering.methods import METHODS, Method
from pilothouse.steering.sweep import LayerReport, Sides, best_layer, hold_out, report_layer

MakeSource = Callable[..., Any]
# Noise has a deviation of 1 in each component: layer 0 hardly separates, layer 2 does.
DIRECTIONS = {
    0: np.array([0.02, 0, 0, 0], dtype=np.float32),
    1: np.array([0.7, 0, 0.7, 0], dtype=np.float32),
    2: np.array([0, 3, 0, -4], dtype=np.float32),
}


def pairs(n: int, split: str | None = None, first: int = 0) -> list[ContrastPair]:
    return [ContrastPair(positive=f"{i}+", negative=f"{i}-", split=split) for i in range(first, first + n)]


@pytest.mark.parametrize("method", METHODS)
def test_the_layer_with_the_planted_direction_is_the_best(make_source: MakeSource, method: Method) -> None:
    source = make_source(DIRECTIONS, noise=1.0)
    recipe = Recipe(method=method, best=True)
    vector = extract_vector(source, pairs(40), name="v", recipe=recipe, held_out=pairs(30, first=40)).vector
    assert list(vector.direction.layers) == list(vector.default_layers) == list(vector.resid_norm) == [2]
    row = vector.direction.layers[2].astype(np.float64)
    assert row @ DIRECTIONS[2] / np.linalg.norm(row) / 5 > 0.9
    assert vector.method == method
    assert [report["layer"] for report in vector.card["sweep"]] == [0, 1, 2]
    # Made from its own noise the first layer's row would separate; on other pairs it must not.
    assert vector.card["sweep"][0]["auroc"] < 0.75
    assert vector.card["sweep"][2]["auroc"] == 1.0


def test_a_sweep_without_a_choice_keeps_every_layer_and_its_numbers(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(DIRECTIONS, noise=1.0)
    made_from, held = pairs(40), pairs(30, first=40)
    swept = extract_vector(source, made_from, name="v", held_out=held).vector
    plain = extract_vector(source, made_from, name="v").vector
    # Nothing of what judges goes into what is judged.
    assert swept.digest == plain.digest
    assert swept.resid_norm == plain.resid_norm
    assert "sweep" not in plain.card
    save_vector(swept, tmp_path / "v.safetensors")
    assert load_vector(tmp_path / "v.safetensors").card["sweep"] == swept.card["sweep"]
    for report in swept.card["sweep"]:
        layer = report["layer"]
        row = swept.direction.layers[layer].astype(np.float64)
        assert report["row_norm"] == pytest.approx(np.linalg.norm(row), rel=1e-6)
        assert report["row_norm"] == swept.card["norms"][str(layer)]
        assert report["stream_norm"] == swept.resid_norm[layer]
        scores = [source.stream(source.encode(t), layer)[-1] @ row for p in held for t in (p.positive, p.negative)]
        assert report["auroc"] == pytest.approx(roc_auc_score([1, 0] * 30, scores))


def sides(seed: int, n: int, shift: float) -> Sides:
    rng = np.random.default_rng(seed)

    def rows(sign: int) -> Float32:
        return (4 + rng.normal(size=(n, 3)) + [sign * shift, 0, 0]).astype(np.float32)

    return Sides(rows(1), rows(-1))


def test_a_report_is_what_scikit_learn_says() -> None:
    made_from, held = sides(0, 50, 1.0), sides(1, 40, 1.0)
    row = np.array([2, 0.5, 0], dtype=np.float32)
    report = report_layer(7, row, made_from, held, 9.0)
    unit = row / np.linalg.norm(row)
    middle = np.mean([(made_from.positive @ unit).mean(), (made_from.negative @ unit).mean()])
    high, low = held.positive @ unit, held.negative @ unit
    labels, scores = [1] * 40 + [0] * 40, np.concatenate([high, low])
    assert report.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert report.accuracy == pytest.approx(accuracy_score(labels, scores > middle))
    pooled = np.sqrt((high.var() + low.var()) / 2)
    assert report.separation == pytest.approx((high.mean() - low.mean()) / pooled, rel=1e-4)
    assert (report.layer, report.stream_norm) == (7, 9.0)
    assert report.row_norm == pytest.approx(np.linalg.norm(row))
    assert 0.6 < report.auroc < 1


def test_a_row_of_zeros_separates_nothing() -> None:
    report = report_layer(0, np.zeros(3, dtype=np.float32), sides(0, 9, 1.0), sides(1, 9, 1.0), 1.0)
    assert (report.auroc, report.accuracy, report.separation, report.row_norm) == (0.5, 0.5, 0.0, 0.0)


def test_of_layers_that_separate_equally_the_one_with_the_widest_gap_is_best() -> None:
    def report(layer: int, auroc: float, accuracy: float, separation: float) -> LayerReport:
        return LayerReport(layer, auroc, accuracy, separation, row_norm=1.0, stream_norm=1.0)

    reports = [report(0, 0.9, 1, 9), report(1, 1, 0.9, 9), report(2, 1, 1, 2), report(3, 1, 1, 3), report(4, 1, 1, 3)]
    assert best_layer({each.layer: each for each in reports}) == 3


def test_the_split_select_is_held_out_and_only_train_is_made_from() -> None:
    train, select, judged = pairs(4, "train"), pairs(3, "select", 4), pairs(2, "eval", 7)
    assert hold_out([*judged, *select, *train], 0) == (train, select)
    other = pairs(2, "more", 9)
    assert hold_out([*select, *other], 0) == (other, select)


def test_without_splits_a_seeded_third_is_held_out() -> None:
    everything = pairs(20)
    made_from, held = hold_out(everything, 0)
    assert len(held) == 6
    assert sorted([*made_from, *held], key=everything.index) == everything
    assert hold_out(everything, 0) == (made_from, held)
    assert hold_out(everything, 1) != (made_from, held)


@pytest.mark.parametrize("too_few", [[], pairs(1), pairs(3, "select")])
def test_too_few_pairs_to_hold_any_out_are_refused(too_few: list[ContrastPair]) -> None:
    with pytest.raises(ArtefactError, match="held out"):
        hold_out(too_few, 0)


def test_the_best_layer_needs_held_out_pairs(make_source: MakeSource) -> None:
    source = make_source(DIRECTIONS)
    with pytest.raises(ArtefactError, match="held-out"):
        extract_vector(source, pairs(4), name="v", recipe=Recipe(best=True))
    assert source.batch_sizes == []
