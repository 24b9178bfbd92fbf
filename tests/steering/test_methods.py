"""Each method against its definition written out, and all of them on a direction that was planted."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.methods import METHODS, Method, find_direction, lat, logistic, pca

D = 24


def planted(n: int = 200, d: int = D, shift: float = 6.0, seed: int = 0) -> tuple[Float32, Float32, Float32]:
    """Positive and negative items that differ by a `shift` along a unit direction, on a background far from zero."""
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=d)
    unit /= np.linalg.norm(unit)
    background = 3.0 + 0.5 * rng.normal(size=(n, d))
    noise = 0.5 * rng.normal(size=(2, n, d))
    amount = shift * (1 + 0.1 * rng.normal(size=(n, 1)))
    positive, negative = background + noise[0] + amount / 2 * unit, background + noise[1] - amount / 2 * unit
    return positive.astype(np.float32), negative.astype(np.float32), unit.astype(np.float32)


def cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [200, 10])
def test_every_method_finds_a_planted_direction_with_its_sign_and_length(method: Method, n: int) -> None:
    positive, negative, unit = planted(n)
    row = find_direction(method, positive, negative)
    # Logistic regression is told the scale of each component and leans on the quiet ones.
    assert cosine(row, unit) > (0.8 if method == "logistic" else 0.9)
    assert row.dtype == np.float32
    assert float(row @ unit) > 0
    # Strength 1 goes from the negatives to the positives, whatever the method.
    difference = (positive.astype(np.float64) - negative).mean(axis=0)
    along = row / np.linalg.norm(row)
    assert np.linalg.norm(row) == pytest.approx(difference @ along, rel=1e-5)
    # Labels the other way round are the same line the other way round.
    assert cosine(find_direction(method, negative, positive), row) < -0.9


def test_the_mean_difference_is_left_as_it_is() -> None:
    positive, negative, _ = planted()
    expected = np.mean(positive.astype(np.float64) - negative, axis=0)
    np.testing.assert_allclose(find_direction("mean_difference", positive, negative), expected, rtol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
def test_pca_is_that_of_pairs_centred_on_their_middle(n: int, d: int) -> None:
    """repeng's `pca_center`, with scikit-learn as it uses it."""
    positive, negative, _ = planted(n, d, shift=1.0)
    middle = (positive + negative) / 2
    centred = np.concatenate([positive - middle, negative - middle])
    expected = PCA(n_components=1).fit(centred.astype(np.float64)).components_[0]
    assert abs(cosine(pca(positive, negative), expected)) > 1 - 1e-6


def test_pca_keeps_what_all_pairs_have_in_common() -> None:
    positive, negative, unit = planted(50)
    negative = positive - 2 * unit
    np.testing.assert_allclose(find_direction("pca", positive, negative), 2 * unit, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
def test_lat_is_the_pca_of_differences_of_random_pairs(n: int, d: int) -> None:
    positive, negative, _ = planted(n, d, shift=1.0)
    items = [*positive.astype(np.float64), *negative.astype(np.float64)]
    order = list(np.random.default_rng(5).permutation(2 * n))
    differences = [items[order[i]] - items[order[i + 1]] for i in range(0, 2 * n, 2)]
    expected = PCA(n_components=1).fit(np.array(differences)).components_[0]
    assert abs(cosine(lat(positive, negative, 5), expected)) > 1 - 1e-6
    assert not np.allclose(lat(positive, negative, 5), lat(positive, negative, 6))
    np.testing.assert_array_equal(lat(positive, negative, 5), lat(positive, negative, 5))


def test_lat_of_one_pair_is_its_difference() -> None:
    positive, negative, _ = planted(1)
    row = find_direction("lat", positive, negative)
    np.testing.assert_allclose(row, (positive - negative)[0], rtol=1e-4, atol=1e-5)


def test_logistic_weights_are_those_of_the_raw_stream() -> None:
    positive, negative, _ = planted()
    # Components of very different scales: weights that were not mapped back would point elsewhere.
    scale = np.logspace(-2, 2, D).astype(np.float32)
    positive, negative = positive * scale, negative * scale
    x, y = np.concatenate([positive, negative]), np.repeat([1, 0], len(positive))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000)).fit(x, y)
    weights = logistic(positive, negative)
    logits = model.decision_function(x)
    ours = x.astype(np.float64) @ weights
    np.testing.assert_allclose(ours - ours.mean(), logits - logits.mean(), atol=1e-2)


def test_a_component_that_does_not_vary_gets_no_weight() -> None:
    positive, negative, _ = planted()
    positive[:, 3] = negative[:, 3] = 1e4
    assert logistic(positive, negative)[3] == 0


@pytest.mark.parametrize("method", METHODS[1:])
def test_items_that_do_not_differ_have_no_direction(method: Method) -> None:
    positive, _, _ = planted(10)
    with pytest.raises(ArtefactError, match=f"{method} finds no direction"):
        find_direction(method, positive, positive.copy())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_stream_that_is_not_finite_is_refused(method: Method, broken: float) -> None:
    positive, negative, _ = planted(10)
    negative[3, 4] = broken
    with pytest.raises(ArtefactError, match="NaN"):
        find_direction(method, positive, negative)
