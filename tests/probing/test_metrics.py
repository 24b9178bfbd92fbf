"""Metrics against numbers worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.metrics import (
    OperatingPoint,
    bins_for,
    brier,
    expected_calibration_error,
    recall_at,
    reliability,
)
from pilothouse.probing.thresholds import check_supported, threshold_at, threshold_table


def test_equal_mass_bins_and_their_error_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.9])
    labels = np.array([0, 0, 1, 0, 1, 1])
    table = reliability(scores, labels, bins=3)
    assert [(row.low, row.high, row.n) for row in table] == [(0.1, 0.2, 2), (0.3, 0.4, 2), (0.8, 0.9, 2)]
    assert [row.mean_score for row in table] == pytest.approx([0.15, 0.35, 0.85])
    assert [row.observed for row in table] == [0.0, 0.5, 1.0]
    # (0.15 + 0.15 + 0.15) / 3
    assert expected_calibration_error(table) == pytest.approx(0.15)


def test_bins_are_of_equal_mass_and_not_of_equal_width() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(1500) ** 4
    table = reliability(scores, (rng.random(1500) < scores).astype(np.int64), bins=15)
    assert [row.n for row in table] == [100] * 15
    assert expected_calibration_error(table) < 0.05


def test_equal_scores_share_a_bin() -> None:
    table = reliability(np.array([0.5] * 9 + [0.9]), np.array([0, 1] * 5), bins=5)
    assert [row.n for row in table] == [9, 1]
    assert [row.mean_score for row in table] == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize(("n", "bins"), [(5, 1), (20, 2), (99, 9), (150, 15), (10_000, 15)])
def test_small_sets_have_fewer_bins(n: int, bins: int) -> None:
    assert bins_for(n) == bins


def test_small_honest_sets_are_not_called_miscalibrated() -> None:
    # With 15 bins for 30 items the error would be about 0.4, whatever the probe.
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = rng.uniform(0.3, 0.7, 30)
        labels = (rng.random(30) < scores).astype(np.int64)
        found.append(expected_calibration_error(reliability(scores, labels, bins_for(30))))
    assert np.mean(found) < 0.2


def test_brier_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.random(50), rng.integers(0, 2, 50)
    assert brier(scores, labels) == pytest.approx(brier_score_loss(labels, scores))


def test_recall_at_a_rate_by_hand() -> None:
    # Ten benign items at 0.0, 0.1 ... 0.9; bad ones at 0.05, 0.85, 0.95, 0.99.
    scores = np.array([*np.arange(10) / 10, 0.05, 0.85, 0.95, 0.99])
    labels = np.repeat([0, 1], [10, 4])
    assert recall_at(scores, labels, "high", 0.01) == OperatingPoint(0.5, 0.0)
    assert recall_at(scores, labels, "high", 0.1) == OperatingPoint(0.75, 0.1)
    # Low scores are bad: the same numbers mirrored.
    assert recall_at(1 - scores, 1 - labels, "low", 0.1) == OperatingPoint(0.75, 0.1)


@pytest.mark.parametrize("fpr", [0.01, 0.1, 0.33])
def test_recall_at_a_rate_is_scikit_learns_best(fpr: float) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 400)
    scores = np.round(rng.normal(size=400) + labels, 1)
    rates, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert recall_at(scores, labels, "high", fpr).recall == pytest.approx(recalls[rates <= fpr].max())
    assert roc_auc_score(labels, scores) > 0.7


@pytest.mark.parametrize(("alarm", "sign"), [("high", 1), ("low", -1)])
def test_a_threshold_flags_no_more_than_its_rate(alarm: str, sign: int) -> None:
    benign = np.arange(100) / 100
    scores = np.concatenate([benign, [0.97, 0.985, 2.0]])
    bad = np.repeat([0, 1], [100, 3])
    labels = bad if alarm == "high" else 1 - bad
    # Five of a hundred lie above 0.94, one above 0.98.
    assert threshold_at(sign * scores, labels, alarm, 0.05) == pytest.approx(sign * 0.94)  # type: ignore[arg-type]
    table = threshold_table(sign * scores, labels, alarm)  # type: ignore[arg-type]
    assert table["0.01"] == {
        "threshold": pytest.approx(sign * 0.98),
        "flagged_benign": 0.01,
        "flagged_bad": pytest.approx(2 / 3),
        "n_benign": 100,
    }
    assert set(table) == {"0.01", "0.05"}


def test_a_rate_that_the_items_cannot_show_has_no_threshold_but_a_reason() -> None:
    labels = np.repeat([0, 1], [50, 50])
    table = threshold_table(np.arange(100) / 100, labels, "high")
    assert table["0.01"]["threshold"] is None
    assert "needs 100 benign items" in table["0.01"]["reason"]
    assert table["0.05"]["threshold"] == pytest.approx(0.47)
    with pytest.raises(ArtefactError, match="between 0 and 1"):
        check_supported(labels, "high", 1.0)
