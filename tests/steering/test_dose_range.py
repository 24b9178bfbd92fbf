"""Which strengths are tried and which are recommended."""

import numpy as np
import pytest

from pilothouse.core.directions import Direction
from pilothouse.steering import Vector, default_strengths
from pilothouse.steering.dose_range import Effect, recommend


def points(**columns: tuple[float, ...]) -> list[Effect]:
    """Effect points at strengths -2 to 3; accuracy 0.9 and perplexity 10 unless given."""
    effect = columns["effect"]
    accuracy = columns.get("accuracy", (0.9,) * len(effect))
    perplexity = columns.get("perplexity", (10.0,) * len(effect))
    numbers = zip(range(-2, 4), effect, accuracy, perplexity, strict=True)
    return [Effect(float(s), e, a, p) for s, e, a, p in numbers]


GROWS = (0.1, 0.1, 0.1, 0.3, 0.5, 0.9)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # Best gain .8: .4 is enough, to the letter.
        (points(effect=GROWS), (2.0, 3.0)),
        (points(effect=GROWS, accuracy=(0.9, 0.9, 0.9, 0.9, 0.87, 0.87)), (2.0, 3.0)),
        (points(effect=GROWS, accuracy=(0.9, 0.9, 0.9, 0.9, 0.9, 0.869)), (1.0, 2.0)),
        (points(effect=GROWS, perplexity=(10, 10, 10, 10, 11, 11)), (2.0, 3.0)),
        (points(effect=GROWS, perplexity=(10, 10, 10, 10, 11.01, 11)), (3.0, 3.0)),
        # What costs too much sets no mark: the best gain without harm is .2, of which the half is enough.
        (points(effect=GROWS, perplexity=(10, 10, 10, 10, 20, 20)), (1.0, 1.0)),
        (points(effect=GROWS, perplexity=(10, 10, 10, 10, float("nan"), 20)), (1.0, 1.0)),
        (points(effect=GROWS, perplexity=(10, 10, 10, 20, 20, 20)), None),
        (points(effect=(0.1, 0.1, 0.1, 0.2, 0.3, 0.9), accuracy=(0.9,) * 5 + (0.1,)), (1.0, 2.0)),
        # Five points are a gain, to the letter, and less is chance.
        (points(effect=(0.1, 0.1, 0.1, 0.14, 0.15, 0.15)), (2.0, 3.0)),
        (points(effect=(0.1, 0.1, 0.1, 0.1, 0.1, 0.149)), None),
        (points(effect=(0.1, 0.1, 0.1, 0.14, 0.9, 0.9), perplexity=(10, 10, 10, 10, 20, 20)), None),
        # A better model is no loss.
        (points(effect=GROWS, accuracy=(1.0,) * 6, perplexity=(10, 10, 10, 9, 8, 7)), (2.0, 3.0)),
        # Nothing gained: less of the effect than at 0 is not more.
        (points(effect=(0.0, 0.1, 0.5, 0.5, 0.2, 0.0)), None),
        (points(effect=(0.0,) * 6), None),
        # Two ranges: the one with more strengths. Strength 0 is never in one.
        (points(effect=(0.5, 0.5, 0.1, 0.1, 0.5, 0.1)), (-2.0, -1.0)),
        (points(effect=(0.1, 0.5, 0.1, 0.5, 0.5, 0.5)), (1.0, 3.0)),
        # Equal in size: the one that gains more; then the one nearest to 0.
        (points(effect=(0.1, 0.5, 0.1, 0.6, 0.1, 0.1)), (1.0, 1.0)),
        (points(effect=(0.1, 0.5, 0.1, 0.1, 0.1, 0.5)), (-1.0, -1.0)),
    ],
)
def test_the_rule(made: list[Effect], expected: tuple[float, float] | None) -> None:
    found = recommend(made)
    assert found.range == expected
    assert found.reason
    assert recommend(made[::-1]) == found


def vector(resid_norm: dict[int, float], recommended: tuple[float, float] | None) -> Vector:
    rows = {1: np.array([3, 4], dtype=np.float32), 2: np.array([0, 2], dtype=np.float32)}
    return Vector("v", Direction(rows), None, "resid_post", None, (1, 2), resid_norm, recommended, {})


@pytest.mark.parametrize(
    ("made", "middle"),
    [
        (vector({}, None), 1.0),
        # A quarter of the stream, which is 4 and 10 rows long.
        (vector({1: 20.0, 2: 20.0}, None), 1.75),
        (vector({1: 20.0}, None), 1.0),
        (vector({1: 20.0, 2: 20.0}, (-0.5, 3.0)), 3.0),
        (vector({}, (0.0, 0.0)), 1.0),
    ],
)
def test_the_default_strengths_double_about_what_is_known(made: Vector, middle: float) -> None:
    found = default_strengths(made, (1, 2))
    assert found == sorted(found)
    assert found == [-s for s in reversed(found)]
    assert len(found) == 11
    positive = found[6:]
    assert positive == pytest.approx([middle * f for f in (0.25, 0.5, 1, 2, 4)], rel=5e-3)
