"""What gauges show, from counts, against scikit-learn on the records behind the counts."""

from collections import Counter
from typing import Literal

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_score, recall_score

from pilothouse.probing.quality import BINS, ScoreBin, bin_of, quality


@pytest.mark.parametrize("alarm", ["high", "low"])
@pytest.mark.parametrize("seed", range(3))
def test_counts_say_what_the_records_say(alarm: Literal["high", "low"], seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.6, 0.5, 400)
    values = rng.random(400) < scores**1.5
    flagged = scores > 0.6 if alarm == "high" else scores < 0.3
    counts = Counter(zip(flagged.tolist(), values.tolist(), strict=True))
    numbers = np.array([bin_of(score) for score in scores])
    bins = [
        ScoreBin(int((numbers == i).sum()), float(scores[numbers == i].sum()), int(values[numbers == i].sum()))
        for i in range(BINS)
    ]
    found = quality(counts, bins, alarm)
    bad = values if alarm == "high" else ~values
    assert found.n == 400
    assert found.precision == pytest.approx(precision_score(bad, flagged))
    assert found.recall == pytest.approx(recall_score(bad, flagged))
    observed, predicted = calibration_curve(values, scores, n_bins=BINS)
    sizes = np.array([row.n for row in bins if row.n])
    assert found.calibration_error == pytest.approx(float(sizes @ abs(observed - predicted)) / 400)


def test_what_is_a_share_of_nothing_is_not_defined() -> None:
    nothing = quality({}, [], "high")
    assert (nothing.precision, nothing.recall, nothing.calibration_error, nothing.n) == (None, None, None, 0)
    unflagged = quality({(False, False): 3}, [], "low")
    assert (unflagged.precision, unflagged.recall, unflagged.n) == (None, 0.0, 3)
    benign = quality({(True, False): 3}, [], "high")
    assert (benign.precision, benign.recall) == (0.0, None)


def test_the_ends_have_their_bins() -> None:
    assert [bin_of(score) for score in (0.0, 0.0999, 0.1, 0.95, 1.0, 7.5)] == [0, 0, 1, 9, 9, 9]
