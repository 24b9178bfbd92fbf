"""Recalibration from labels that a known calibration drew, and its measures against scikit-learn's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, precision_score, recall_score

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import Isotonic, Platt, Probe, recalibrate
from pilothouse.probing.calibration import calibrate
from pilothouse.probing.comparison import Judged, compare
from pilothouse.probing.recalibration import Proposal, _moved
from pilothouse.probing.verdicts import Label

MAKES = Callable[..., Probe]
# What a logit means in the traffic that the labels are of.
TRAFFIC = Platt(a=0.3, b=-0.5)


def labels(version: str, n: int = 400, seed: int = 1, law: Any = TRAFFIC) -> list[Label]:
    rng = np.random.default_rng(seed)
    z = rng.normal(1, 5, n)
    values = rng.random(n) < calibrate(law, z)
    return [
        Label(f"r{i}", float(z[i]), bool(values[i]), version, "ann" if i % 3 else "bob", 1000.0 + i) for i in range(n)
    ]


def a_probe(make: MAKES, **changes: Any) -> Probe:
    probe: Probe = make(**{"calibration": Platt(a=1.2, b=0.3), "token_calibration": Platt(a=0.7, b=0.0), **changes})
    return probe


@pytest.fixture
def proposal(make_probe: MAKES) -> Proposal:
    probe = a_probe(make_probe, card={"data": "sha256:of", "metrics": {"auroc": 0.5, "accuracy": 0.9}})
    return recalibrate(probe, labels(probe.version))


def test_the_calibration_of_the_traffic_is_found(proposal: Proposal) -> None:
    new, old = proposal.new, proposal.old
    assert isinstance(new.calibration, Platt)
    assert (new.calibration.a, new.calibration.b) == pytest.approx((TRAFFIC.a, TRAFFIC.b), abs=0.1)
    assert (new.threshold, new.token_calibration) == (old.threshold, old.token_calibration)
    assert (new.name, new.direction.digest, new.bias) == (old.name, old.direction.digest, old.bias)
    assert new.version != old.version
    assert proposal.kind == "platt"


def test_the_card_says_where_it_comes_from(proposal: Proposal) -> None:
    card, old = proposal.new.card, proposal.old
    assert card == proposal.new.full_card
    assert card["recalibrated_from"] == {
        "version": old.version,
        "threshold": 0.5,
        "calibration": {"kind": "platt", "a": 1.2, "b": 0.3},
        "kind": "platt",
        "n_choices": 400,
        "n_holds": int(proposal.verdicts.values.sum()),
        "sources": {"ann": 266, "bob": 134},
        "first": "1970-01-01T00:16:40+00:00",
        "last": "1970-01-01T00:23:19+00:00",
    }
    assert card["data"] == "sha256:of"
    assert "accuracy" not in card["metrics"], "it was of the old scores"
    assert card["metrics"]["thresholds"]["0.05"]["flagged_benign"] <= 0.05
    assert card["metrics"]["measured_on"]["labels_of"] == old.version


@pytest.mark.parametrize("alarm", ["low", "high"])
def test_the_measures_are_scikit_learns(make_probe: MAKES, alarm: str) -> None:
    probe = a_probe(make_probe, alarm=alarm)
    found = recalibrate(probe, labels(probe.version, 300), kind="platt").as_json
    y = np.array([choice["value"] for choice in found["choices"]])
    bad = y == (1 if alarm == "high" else 0)
    for side, suffix in (("before", ""), ("after", "_after")):
        scores = np.array([choice[f"score{suffix}"] for choice in found["choices"]])
        flagged = np.array([choice[f"flagged{suffix}"] for choice in found["choices"]])
        assert flagged.tolist() == (scores > 0.5 if alarm == "high" else scores < 0.5).tolist()
        measures = {name: row[side]["value"] for name, row in found["measures"].items()}
        assert measures.pop("ece") == pytest.approx(ece(scores, y))
        assert measures == pytest.approx(
            {
                "brier": brier_score_loss(y, scores),
                "log_loss": log_loss(y, scores),
                "precision": precision_score(bad, flagged),
                "recall": recall_score(bad, flagged),
                "flagged": flagged.mean(),
            }
        )
    rows = found["measures"].values()
    for row in rows:
        assert row["difference"]["value"] == pytest.approx(row["after"]["value"] - row["before"]["value"])
    assert found["measures"]["log_loss"]["difference"]["interval"]["high"] < 0


def ece(scores: Any, y: Any) -> float:
    """Fifteen bins of equal mass, by hand."""
    parts = np.array_split(np.argsort(scores, kind="stable"), 15)
    return float(sum(abs(scores[part].sum() - y[part].sum()) for part in parts)) / len(y)


def test_what_is_held_out_had_no_part_in_its_score(make_probe: MAKES) -> None:
    probe = a_probe(make_probe)
    given = labels(probe.version, 100)
    first, second = (
        recalibrate(probe, [replace(given[0], statistic=statistic), *given[1:]], kind="platt")
        for statistic in (given[0].statistic, 30.0)
    )
    same = (first.after.scores == second.after.scores)[1:]
    # A fifth of the responses, those held out together with the first one, are judged by what did not see it.
    assert 18 <= same.sum() <= 20
    assert abs(first.after.scores - second.after.scores)[1:][~same].min() > 0


def test_choices_of_one_response_are_held_out_together(make_probe: MAKES) -> None:
    probe = a_probe(make_probe)
    given = labels(probe.version, 100)
    siblings = [replace(label, statistic=float(label.statistic or 0) + 0.01) for label in given]
    found = recalibrate(probe, [*given, *siblings], kind="platt")
    assert found.new.card["metrics"]["n"] == {"choices": 200, "responses": 100}
    interval = found.compared["brier"].after.interval
    assert interval is not None
    assert interval.n_units == 100
    # Had a sibling been seen, its fold's calibration would be another: a pair's own slope is the same for both.
    logit = np.log(found.after.scores / (1 - found.after.scores))
    a, b = logit[:100], logit[100:]
    slopes = (b - a) / 0.01
    assert len(np.unique(slopes.round(6))) == 5


def test_intervals_are_those_of_draws_made_one_by_one() -> None:
    rng = np.random.default_rng(3)
    n = 120
    y = rng.integers(0, 2, n)
    of_item = np.arange(n) // 2
    before, after = (np.clip(0.2 + 0.5 * y + rng.normal(0, 0.3, n), 0.01, 0.99) for _ in range(2))
    bad = y == 0
    sides = [Judged(scores, scores < 0.4, y, bad) for scores in (before, after)]
    found = compare(sides[0], sides[1], of_item, seed=0)
    drawn = []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(of_item == unit) for unit in rng.integers(0, n // 2, n // 2)])
        brier = [float(np.mean((scores[rows] - y[rows]) ** 2)) for scores in (before, after)]
        recall = [float(np.mean(scores[rows][bad[rows]] < 0.4)) for scores in (before, after)]
        drawn.append([brier[1] - brier[0], recall[0], recall[1]])
    wanted = np.quantile(drawn, [0.025, 0.975], axis=0).T
    measured = (found["brier"].difference, found["recall"].before, found["recall"].after)
    for side, (low, high) in zip(measured, wanted, strict=True):
        assert side.interval is not None
        assert (side.interval.unit, side.interval.n_units) == ("response", n // 2)
        assert (side.interval.low, side.interval.high) == pytest.approx((low, high), abs=0.02)


def test_a_threshold_that_flags_nothing_has_no_precision() -> None:
    y = np.arange(60) % 2
    side = Judged(np.full(60, 0.5), np.zeros(60, dtype=bool), y, y == 1)
    found = compare(side, side, np.arange(60), seed=0)
    assert (found["precision"].before.value, found["precision"].difference.interval) == (None, None)
    assert found["recall"].before.value == 0


def test_the_threshold_follows_the_rule_that_training_used(make_probe: MAKES) -> None:
    probe = a_probe(make_probe, card={"threshold_fpr": 0.05})
    found = recalibrate(probe, labels(probe.version))
    scores = calibrate(found.new.calibration, found.verdicts.statistics)
    benign = scores[found.verdicts.values == 1]
    share = float(np.mean(benign < found.new.threshold))
    assert 0.05 - 1 / len(benign) < share <= 0.05
    assert found.new.card["threshold_fpr"] == 0.05
    given = recalibrate(probe, labels(probe.version), threshold=0.25).new
    assert given.threshold == 0.25
    assert "threshold_fpr" not in given.card
    rarer = recalibrate(probe, labels(probe.version), fpr=0.02).new
    assert (rarer.card["threshold_fpr"], rarer.threshold < found.new.threshold) == (0.02, True)


def test_auto_takes_what_is_likelier_on_held_out_responses(make_probe: MAKES) -> None:
    probe = a_probe(make_probe)
    steps = Isotonic(x=(-20.0, -4.0, -3.9, 4.0, 4.1, 20.0), y=(0.02, 0.02, 0.5, 0.5, 0.98, 0.98))
    assert recalibrate(probe, labels(probe.version, 1500, law=steps)).kind == "isotonic"
    assert recalibrate(probe, labels(probe.version, 1500, law=steps), kind="platt").kind == "platt"
    assert recalibrate(probe, labels(probe.version, 150)).kind == "platt"


def test_what_is_right_already_is_not_called_better(make_probe: MAKES) -> None:
    probe = a_probe(make_probe, calibration=TRAFFIC)
    found = recalibrate(probe, labels(probe.version))
    assert any("not shown to fall" in note for note in found.notes)
    assert not any(
        "not shown" in note for note in recalibrate(a_probe(make_probe), labels(a_probe(make_probe).version)).notes
    )


def test_too_few_labels_and_labels_of_one_kind_are_refused(make_probe: MAKES) -> None:
    probe = a_probe(make_probe)
    with pytest.raises(ArtefactError, match=r"there are 49 labelled choices .* needs 50"):
        recalibrate(probe, labels(probe.version, 49))
    with pytest.raises(ArtefactError, match=r"there are 0 labelled .*60 label\(s\) of another version"):
        recalibrate(probe, labels("sha256:other", 60))
    one_kind = [Label(f"r{i}", float(i), True, probe.version, "", 1.0) for i in range(60)]
    with pytest.raises(ArtefactError, match="60 say that 'true' holds, 0 that it does not"):
        recalibrate(probe, one_kind)
    backwards = [Label(f"r{i}", float(i), i < 30, probe.version, "", 1.0) for i in range(60)]
    with pytest.raises(ArtefactError, match="does not tell the labels"):
        recalibrate(probe, backwards)
    with pytest.raises(ArtefactError, match=r"needs 1000 benign items .* among the labelled choices"):
        recalibrate(probe, labels(probe.version), fpr=0.001)
    with pytest.raises(ArtefactError, match="not both"):
        recalibrate(probe, labels(probe.version), fpr=0.1, threshold=0.5)
    with pytest.raises(ArtefactError, match="between 0 and 1"):
        recalibrate(probe, labels(probe.version), threshold=float("nan"))


FLAT = Isotonic(x=(-3.0, -1.0, 1.0, 3.0), y=(0.1, 0.5, 0.5, 0.9))
CALIBRATIONS = [None, Platt(a=1.2, b=0.3), Platt(a=0.3, b=-0.5), FLAT]


@pytest.mark.parametrize("old", CALIBRATIONS)
@pytest.mark.parametrize("new", [c for c in CALIBRATIONS if c is not None])
def test_the_reference_histogram_moves_with_the_scores(old: Any, new: Any) -> None:
    logits = np.random.default_rng(0).normal(0, 4, 3000)
    counts, edges = np.histogram(calibrate(old, logits), bins=20, range=(0, 1))
    moved = _moved({"edges": edges.tolist(), "counts": counts.tolist()}, old, new)
    assert moved is not None
    assert (moved["edges"][0], moved["edges"][-1], sum(moved["counts"])) == (0, 1, 3000)
    assert (np.diff(moved["edges"]) > 0).all()
    wanted, _ = np.histogram(calibrate(new, logits), bins=moved["edges"])
    if isinstance(new, Platt):
        assert moved["counts"] == wanted.tolist()
    else:
        # Scores on the flat middle lie on one edge; those of the bin that reaches into it are counted below it.
        flat = int(np.argmin(abs(np.array(moved["edges"]) - 0.5)))
        others = [i for i in range(len(wanted)) if i not in (flat - 1, flat)]
        assert [moved["counts"][i] for i in others] == wanted[others].tolist()


@pytest.mark.parametrize(
    "histogram",
    [
        None,
        3,
        {},
        {"edges": [0, 1], "counts": []},
        {"edges": [0, 1, 1], "counts": [1, 2]},
        {"edges": "x", "counts": []},
    ],
)
def test_a_histogram_that_cannot_be_read_is_dropped(make_probe: MAKES, histogram: Any) -> None:
    probe = a_probe(make_probe, card={"reference_histogram": histogram})
    found = recalibrate(probe, labels(probe.version))
    assert "reference_histogram" not in found.new.card
    assert any("reference histogram" in note for note in found.notes) is (histogram is not None)
