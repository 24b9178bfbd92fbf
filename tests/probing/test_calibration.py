import math

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import Isotonic, Platt
from pilothouse.probing.calibration import CalibrationKind, calibrate, fit_calibration, fit_platt


def test_extreme_logits_neither_overflow_nor_lose_their_order() -> None:
    scores = calibrate(None, [-1e4, -700, -40, 0, 40, 700, 1e4])
    assert scores.tolist() == pytest.approx([0, math.exp(-700), math.exp(-40), 0.5, 1, 1, 1], rel=1e-12)


@pytest.mark.parametrize(
    "calibration",
    [None, Platt(a=1.0, b=0.0), Isotonic(x=(0.0, 1.0), y=(0.0, 1.0)), Isotonic(x=(0.0,), y=(0.5,))],
)
def test_what_was_not_scored_stays_so(calibration: Platt | Isotonic | None) -> None:
    assert np.isnan(calibrate(calibration, [np.nan])).all()


def test_isotonic_knots_are_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=200)
    labels = rng.random(200) < 1 / (1 + np.exp(-2 * logits))
    oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels)
    ours = Isotonic(x=tuple(oracle.X_thresholds_.tolist()), y=tuple(oracle.y_thresholds_.tolist()))
    probes = np.linspace(-4, 4, 101)
    np.testing.assert_allclose(calibrate(ours, probes), oracle.predict(probes), atol=1e-7)


def test_platt_minimises_the_smoothed_likelihood() -> None:
    rng = np.random.default_rng(5)
    logits = np.concatenate([rng.normal(30, 20, 40), rng.normal(-10, 20, 25)])
    labels = np.repeat([1, 0], [40, 25])
    target = np.where(labels == 1, 41 / 42, 1 / 27)
    found = fit_platt(logits, labels)

    def loss(a: float, b: float) -> float:
        z = a * logits + b
        return float(np.sum(np.logaddexp(0, z) - target * z))

    best = loss(found.a, found.b)
    for da, db in [(1e-3, 0), (-1e-3, 0), (0, 1e-2), (0, -1e-2), (1e-3, 1e-2), (-1e-3, -1e-2)]:
        assert loss(found.a + da * found.a, found.b + db) > best


def test_platt_stays_finite_on_separable_labels() -> None:
    found = fit_platt([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1])
    assert 0 < found.a < 100
    assert calibrate(found, [-2.5, 2.5]).tolist() == pytest.approx([0.25, 0.75], abs=0.02)


@pytest.mark.parametrize("logits", [[1.0, 2.0, -1.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
def test_a_probe_that_learnt_nothing_is_not_calibrated(logits: list[float]) -> None:
    with pytest.raises(ArtefactError):
        fit_platt(logits, [0, 0, 1, 1])


@pytest.mark.parametrize(
    "knots",
    [
        {"x": [0.0, 0.0], "y": [0.1, 0.2]},
        {"x": [1.0, 0.0], "y": [0.1, 0.2]},
        {"x": [0.0, 1.0], "y": [0.2, 0.1]},
        {"x": [0.0, 1.0], "y": [0.2]},
        {"x": [0.0, 1.0], "y": [0.2, 1.1]},
        {"x": [], "y": []},
        {"x": [0.0, math.inf], "y": [0.1, 0.2]},
    ],
)
def test_knots_that_do_not_rise_are_refused(knots: dict[str, list[float]]) -> None:
    with pytest.raises(ValidationError):
        Isotonic.model_validate(knots)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_few_items_never_make_a_certainty(kind: CalibrationKind, n: int) -> None:
    # Separable: without smoothing every score would be 0 or 1, and one mistake would cost all.
    logits = np.concatenate([np.arange(n) + 1.0, -np.arange(n) - 1.0])
    found = fit_calibration(kind, logits, np.repeat([1, 0], n))
    scores = calibrate(found, logits)
    assert 0.5 < scores[:n].min() <= scores[:n].max()
    if kind == "isotonic":
        assert scores.max() == pytest.approx((n + 1) / (n + 2))
        assert scores.min() == pytest.approx(1 / (n + 2))
    else:
        assert scores.max() < 1 - 1e-4


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_small_random_sets_are_calibrated_or_refused(kind: CalibrationKind) -> None:
    made = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.array([0, 1, *rng.integers(0, 2, rng.integers(0, 8))])
        logits = 10.0 ** rng.integers(-3, 4) * (rng.normal(size=len(labels)) + 1.5 * labels)
        try:
            scores = calibrate(fit_calibration(kind, logits, labels), np.sort(logits))
        except ArtefactError:
            continue
        made += 1
        assert ((scores > 0) & (scores < 1)).all()
        assert (np.diff(scores) >= 0).all()
    assert made > 40


def test_isotonic_fits_are_scikit_learns_between_the_smoothed_ends() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=200)
    labels = (rng.random(200) < 1 / (1 + np.exp(-2 * logits))).astype(int)
    oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels)
    lowest, highest = 1 / ((labels == 0).sum() + 2), ((labels == 1).sum() + 1) / ((labels == 1).sum() + 2)
    probes = np.linspace(-4, 4, 101)
    found = calibrate(fit_calibration("isotonic", logits, labels), probes)
    inside = (oracle.predict(probes) > 0.1) & (oracle.predict(probes) < 0.9)
    np.testing.assert_allclose(found[inside], oracle.predict(probes)[inside], atol=0.02)
    assert (found.min(), found.max()) == (pytest.approx(lowest), pytest.approx(highest))
