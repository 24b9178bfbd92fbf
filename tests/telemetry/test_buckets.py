"""Buckets of scores: each probe's own thresholds are bounds, those that come while it counts included."""

import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from telemetry_support.outcomes import MODEL, make_metrics, outcome, probe_info, samples_of, scored

from pilothouse.core.records import ProbeOutcome
from pilothouse.telemetry.metrics import Metrics
from pilothouse.telemetry.scores import STEPS


def buckets(registry: CollectorRegistry, probe: str = "p", name: str = "score") -> dict[float, float]:
    """Cumulative counts by bound."""
    found = {
        float(dict(labels)["le"]): value
        for (sample, labels), value in samples_of(registry.collect()).items()
        if sample == f"pilothouse_probe_{name}_bucket" and dict(labels)["probe"] == probe
    }
    return dict(sorted(found.items()))


def test_every_probe_has_its_own_threshold_as_a_bound(registry: CollectorRegistry) -> None:
    metrics = make_metrics(registry, probe_info("p", 0.873), probe_info("q", 0.1234))
    for probe in ("p", "q"):
        for score in (0.87, 0.873, 0.874, 0.1234):
            metrics.observe(outcome(scored(score, probe=probe)))
    assert set(buckets(registry, "p")) == {*STEPS, 0.873, float("inf")}
    assert set(buckets(registry, "q")) == {*STEPS, 0.1234, float("inf")}
    assert buckets(registry, "p")[0.873] == 3
    assert buckets(registry, "q")[0.1234] == 1


def test_what_is_watched_for_one_request_flags_above_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    for activation in (0.0, 0.001, 1.5):
        metrics.observe(outcome(scored(activation, probe="features/3")))
    found = buckets(registry, "adhoc")
    assert (found[0.0], found[0.05], found[1.0], found[float("inf")]) == (1, 2, 2, 3)


@pytest.mark.parametrize("name", ["score", "prompt_end"])
def test_a_threshold_that_comes_later_splits_what_comes_after_it(
    metrics: Metrics, registry: CollectorRegistry, name: str
) -> None:
    def observe(*values: float) -> None:
        for value in values:
            metrics.observe(outcome(ProbeOutcome("p", value, value, False, 1)))

    observe(0.91, 0.94)
    before = buckets(registry, name=name)
    metrics.show_registry(MODEL, [probe_info("p", 0.925)], [])
    after = buckets(registry, name=name)
    # Nothing that was there has changed; the new bucket starts with what is surely below it.
    assert after == dict(sorted({**before, 0.925: before[0.9]}.items()))
    observe(0.91, 0.925, 0.93)
    assert buckets(registry, name=name)[0.925] - after[0.925] == 2
    assert buckets(registry, name=name)[0.95] - after[0.95] == 3
    assert 0.873 in after, "an earlier threshold stays a bound"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(0, 1.2), st.tuples(st.just("threshold"), st.floats(-0.5, 1.5))), min_size=1, max_size=40
    )
)
def test_no_series_ever_falls_and_buckets_are_cumulative(steps: list[float | tuple[str, float]]) -> None:
    registry = CollectorRegistry()
    metrics = make_metrics(registry)
    last: dict[float, float] = {}
    threshold = 0.873
    for step in steps:
        if isinstance(step, tuple):
            threshold = step[1]
            metrics.show_registry(MODEL, [probe_info("p", threshold)], [])
            continue
        metrics.observe(outcome(scored(step)))
        now = buckets(registry)
        assert all(now[bound] >= count for bound, count in last.items())
        assert all(low <= high for low, high in pairwise(now.values()))
        assert threshold in now
        last = now


def test_scores_and_thresholds_may_come_at_once(metrics: Metrics, registry: CollectorRegistry) -> None:
    n, threads = 300, 3
    stop = threading.Event()
    torn: list[dict[float, float]] = []

    def observe() -> None:
        for i in range(n):
            metrics.observe(outcome(scored(i / n)))

    def scrape() -> None:
        while not stop.is_set():
            found = list(buckets(registry).values())
            if found != sorted(found):
                torn.append(buckets(registry))

    observers = [threading.Thread(target=observe) for _ in range(threads)]
    scraper = threading.Thread(target=scrape)
    for thread in (*observers, scraper):
        thread.start()
    for i in range(50):
        metrics.show_registry(MODEL, [probe_info("p", 0.011 + i / 53)], [])
    for thread in observers:
        thread.join()
    stop.set()
    scraper.join()
    assert torn == []
    assert buckets(registry)[float("inf")] == n * threads
    before = buckets(registry)
    assert len(before) == len({*STEPS, 0.873, float("inf"), *(0.011 + i / 53 for i in range(50))})
    observe()
    exact = {bound: sum(i / n <= bound for i in range(n)) for bound in before}
    assert {bound: count - before[bound] for bound, count in buckets(registry).items()} == exact
