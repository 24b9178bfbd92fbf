"""Drift: the index against NumPy's by hand, what fades, what is compared with what, and what several processes say."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from telemetry_support.outcomes import MODEL, REFERENCE, make_metrics, outcome, probe_info, scored

from pilothouse.telemetry import drift
from pilothouse.telemetry.drift import HALF_LIFE, Drift, Reference, groups, psi
from pilothouse.telemetry.metrics import Metrics

EDGES = np.linspace(0, 1, 21)
KEY = ("m", "p")


def by_hand(reference: np.ndarray, recent: np.ndarray, starts: list[int]) -> float:
    """The index over groups of bins that begin at `starts`, smoothed by half a count a group."""
    q = np.add.reduceat(reference, starts) + 0.5
    q = q / q.sum()
    r = np.add.reduceat(recent, starts) + 0.5 * len(starts) * q
    r = r / r.sum()
    return float(np.sum((r - q) * np.log(r / q)))


@pytest.fixture
def reference() -> Reference:
    counts, _ = np.histogram(np.random.default_rng(0).beta(2, 5, 4000), EDGES)
    found = Reference.from_card({"edges": EDGES.tolist(), "counts": counts.tolist()}, "sha256:1")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("counts", "starts"),
    [
        ([1] * 20, list(range(0, 20, 2))),
        ([10, 10, 10, 10], [0, 1, 2, 3]),
        ([0, 0, 0, 100], [0, 3]),
        ([100, 0, 0, 0], [0, 1]),
        ([50, 2, 0, 0, 3, 45], [0, 1, 5]),
        ([7], [0]),
    ],
)
def test_bins_are_taken_together_by_tenths(counts: list[float], starts: list[int]) -> None:
    found = groups(counts)
    assert [group.start for group in found] == starts
    assert [i for group in found for i in group] == list(range(len(counts)))


def test_the_index_is_the_textbooks(reference: Reference) -> None:
    rng = np.random.default_rng(1)
    starts = [group.start for group in groups(reference.counts)]
    assert 5 < len(starts) <= 10
    found = {}
    for name, sample in (("same", rng.beta(2, 5, 3000)), ("shifted", rng.beta(5, 3, 3000)), ("few", rng.beta(5, 3, 3))):
        recent, _ = np.histogram(sample, EDGES)
        found[name] = psi(reference.counts, recent.tolist())
        assert found[name] == pytest.approx(by_hand(np.array(reference.counts), recent, starts))
    assert found["same"] < 0.02 < 1 < found["shifted"]
    assert found["few"] < found["shifted"]
    assert psi(reference.counts, [0.0] * 20) == pytest.approx(0, abs=1e-12)


def test_a_narrow_reference_still_shows_a_shift() -> None:
    narrow = [0.0] * 19 + [500.0]
    assert psi(narrow, [0.0] * 19 + [500.0]) < 0.01
    assert psi(narrow, [500.0] + [0.0] * 19) > 1


def test_scores_stream_into_bins_as_numpy_counts_them(reference: Reference) -> None:
    scores = [0.0, 0.05, 0.049999, 0.5, 0.95, 1.0, *np.random.default_rng(2).random(200)]
    recent = Drift(lambda: 5.0)
    recent.show(MODEL, {"p": reference})
    for score in scores:
        recent.observe(*KEY, "sha256:1", float(score))
    counts, _ = np.histogram(scores, EDGES)
    index, n = recent.found()[KEY]
    assert n == len(scores)
    assert index == pytest.approx(psi(reference.counts, counts.tolist()))
    assert [reference.bin(score) for score in (-1.0, 2.0)] == [0, 19]


def test_a_score_counts_for_half_after_the_half_life(reference: Reference) -> None:
    now = [0.0]
    recent = Drift(lambda: now[0])
    recent.show(MODEL, {"p": reference})
    for score, at in ((0.1, 0.0), (0.9, HALF_LIFE), (0.9, 3 * HALF_LIFE)):
        now[0] = at
        recent.observe(*KEY, "sha256:1", score)
    now[0] = 4 * HALF_LIFE
    counts, _ = np.histogram([0.1, 0.9, 0.9], EDGES, weights=[1 / 16, 1 / 8, 1 / 2])
    index, n = recent.found()[KEY]
    assert n == pytest.approx(11 / 16)
    assert index == pytest.approx(psi(reference.counts, counts.tolist()))


def test_several_processes_give_the_index_of_all_scores(reference: Reference) -> None:
    now = [0.0]
    processes = [Drift(lambda: now[0]) for _ in range(3)]
    weights, scores = [], np.random.default_rng(3).beta(3, 3, 300)
    for i, score in enumerate(scores):
        now[0] = 20.0 * i
        # One of them has stopped early on; what it wrote last still counts, for less and less.
        process = processes[i % 3 if i < 100 else i % 2]
        process.show(MODEL, {"p": reference})
        process.observe(*KEY, "sha256:1", float(score))
        weights.append(0.5 ** ((20.0 * 299 - now[0]) / HALF_LIFE))
    counts, _ = np.histogram(scores, EDGES, weights=weights)
    others = [drift.load(json.loads(json.dumps(process.dump()))) for process in processes[1:]]
    index, n = processes[0].found(others)[KEY]
    assert n == pytest.approx(sum(weights))
    assert index == pytest.approx(psi(reference.counts, counts.tolist()))


def test_only_like_is_compared_with_like(registry: CollectorRegistry) -> None:
    metrics = make_metrics(registry, probe_info(reference_histogram=REFERENCE), probe_info("bare"))
    metrics.observe(outcome(scored(0.9)))
    metrics.observe(outcome(scored(0.9), edited={"v": 1}, steering="v"))
    metrics.observe(outcome(scored(0.9, version="sha256:older")))
    metrics.observe(outcome(scored(0.9, probe="bare"), scored(0.9, probe="features/3")))
    assert shown(metrics, "drift_scores") == {"p": 1}
    starts = [0, 1, 2, 3]
    index = by_hand(np.array(REFERENCE["counts"]), np.array([0, 0, 0, 1]), starts)
    assert shown(metrics, "drift_psi") == {"p": pytest.approx(index)}


def shown(metrics: Metrics, name: str) -> dict[str, float]:
    return {
        sample.labels["probe"]: sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == f"pilothouse_probe_{name}"
    }


def test_another_version_of_a_probe_begins_anew(registry: CollectorRegistry) -> None:
    info = probe_info(reference_histogram=REFERENCE)
    metrics = make_metrics(registry, info)
    metrics.observe(outcome(scored(0.9)))
    metrics.show_registry(MODEL, [info, probe_info("other")], [])
    assert shown(metrics, "drift_scores") == {"p": 1}
    metrics.show_registry(MODEL, [replace(info, version="sha256:2")], [])
    assert shown(metrics, "drift_scores") == {"p": 0}
    metrics.show_registry(MODEL, [replace(info, reference_histogram=None)], [])
    assert shown(metrics, "drift_scores") == {}


@pytest.mark.parametrize(
    "histogram",
    [
        None,
        [],
        {},
        {"edges": [0, 1], "counts": []},
        {"edges": [0, 1], "counts": [0]},
        {"edges": [0, 1, 0.5], "counts": [1, 1]},
        {"edges": [0, 0.5, 1], "counts": [1, -1]},
        {"edges": [0, math.inf], "counts": [1]},
        {"edges": "01", "counts": [1]},
        {"edges": [0, "1"], "counts": [1]},
        {"edges": [0, 0.5, 1], "counts": [1]},
    ],
)
def test_a_histogram_that_is_none_is_passed_over(histogram: object) -> None:
    assert Reference.from_card(histogram, "") is None
