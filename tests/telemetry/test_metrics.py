"""Metrics: the contract's names and labels, exact thresholds, and sinks that fail."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from pilothouse.core.records import ChoiceOutcome, GapKind, OutcomeSink, ProbeOutcome, RequestOutcome
from pilothouse.telemetry.metrics import Metrics, score_buckets
from pilothouse.telemetry.sinks import Sinks


def outcome(
    *probes: ProbeOutcome, edited: dict[str, int] | None = None, steering: str = "none", gaps: tuple[GapKind, ...] = ()
) -> RequestOutcome:
    choice = ChoiceOutcome(probes, edited or {}, gaps)
    return RequestOutcome("id", "m", "/v1/completions", steering, tuple(edited or ()), 0.0, (choice,))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics([0.5, 0.873], registry)


def test_names_and_labels_are_the_contracts(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.observe(outcome(ProbeOutcome("p", 0.5, 1.0, True, 3), edited={"v": 4}, steering="v"))
    metrics.observe(outcome(ProbeOutcome("p", None, None, False, 0, "aborted"), gaps=("edited",)))
    found = {
        sample.name: set(sample.labels) - {"le"}
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    scored = {"model_name", "probe", "steering"}
    histograms = ("pilothouse_probe_score", "pilothouse_probe_prompt_end")
    assert found == {
        **{f"{name}_{part}": scored for name in histograms for part in ("bucket", "sum", "count")},
        "pilothouse_probe_requests_total": {"model_name", "probe", "flagged"},
        "pilothouse_probe_unscored_total": {"model_name", "probe", "reason"},
        "pilothouse_probe_tokens_total": {"model_name", "probe"},
        "pilothouse_steering_requests_total": {"model_name", "vector"},
        "pilothouse_steering_tokens_total": {"model_name", "vector"},
        "pilothouse_engine_gaps_total": {"model_name", "kind"},
    }
    assert b'flagged="true"' in generate_latest(registry)


def test_thresholds_are_buckets(metrics: Metrics, registry: CollectorRegistry) -> None:
    buckets = score_buckets([0.5, 0.873])
    assert len(buckets) == 21
    assert buckets == tuple(sorted(buckets))
    assert {0.05, 0.15, 0.5, 0.873, 1.0} <= set(buckets)
    for score in (0.87, 0.873, 0.874):
        metrics.observe(outcome(ProbeOutcome("p", score, None, False, 1)))
    labels = {"model_name": "m", "probe": "p", "steering": "none", "le": "0.873"}
    assert registry.get_sample_value("pilothouse_probe_score_bucket", labels) == 2


def test_what_is_not_scored_is_counted_apart(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.observe(outcome(ProbeOutcome("p", None, 0.25, False, 0, "one_generated_token")))
    labels = {"model_name": "m", "probe": "p"}
    value = registry.get_sample_value
    assert value("pilothouse_probe_unscored_total", {**labels, "reason": "one_generated_token"}) == 1
    assert value("pilothouse_probe_score_count", {**labels, "steering": "none"}) is None
    assert value("pilothouse_probe_prompt_end_sum", {**labels, "steering": "none"}) == 0.25
    assert value("pilothouse_probe_requests_total", {**labels, "flagged": "false"}) is None


def test_gaps_are_counted_by_choice_and_kind(metrics: Metrics, registry: CollectorRegistry) -> None:
    for gaps in (("edited", "scored"), ("edited",), ()):
        metrics.observe(outcome(gaps=gaps))

    def value(kind: GapKind) -> float | None:
        return registry.get_sample_value("pilothouse_engine_gaps_total", {"model_name": "m", "kind": kind})

    assert (value("edited"), value("scored"), value("forwarded")) == (2, 1, None)


class Taker:
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[RequestOutcome] = []

    def observe(self, outcome: RequestOutcome) -> None:
        self.taken.append(outcome)


class Failing:
    """A sink that never works."""

    def observe(self, outcome: RequestOutcome) -> None:
        raise RuntimeError("no")


def test_a_failing_sink_disturbs_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Taker(), Taker()
    failing: OutcomeSink = Failing()
    sinks = Sinks(first, failing, last)
    with caplog.at_level(logging.ERROR):
        sinks.observe(outcome())
        sinks.observe(outcome())
    assert (len(first.taken), len(last.taken)) == (2, 2)
    assert caplog.text.count("Failing failed") == 1


PROCESS = """
from pilothouse.core.records import ChoiceOutcome, ProbeOutcome, RequestOutcome
from pilothouse.telemetry.metrics import Metrics
choice = ChoiceOutcome((ProbeOutcome("p", 0.9, 0.2, True, 3),), {"v": 4}, ())
outcome = RequestOutcome("id", "m", "/v1/completions", "v", ("v",), 0.0, (choice,))
Metrics([0.873]).observe(outcome)
"""


def test_what_several_api_servers_count_adds_up(tmp_path: Path) -> None:
    # As vLLM has it where there are several: each process writes files, and whoever is asked adds them up.
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    together = CollectorRegistry()
    MultiProcessCollector(together, str(tmp_path))  # type: ignore[no-untyped-call]
    value = together.get_sample_value
    assert value("pilothouse_steering_requests_total", {"model_name": "m", "vector": "v"}) == 2
    assert value("pilothouse_steering_tokens_total", {"model_name": "m", "vector": "v"}) == 8
    scored = {"model_name": "m", "probe": "p", "steering": "v"}
    assert value("pilothouse_probe_score_count", scored) == 2
    assert value("pilothouse_probe_score_bucket", {**scored, "le": "0.873"}) == 0
    assert value("pilothouse_probe_score_bucket", {**scored, "le": "0.9"}) == 2
    assert value("pilothouse_probe_prompt_end_bucket", {**scored, "le": "0.2"}) == 2
