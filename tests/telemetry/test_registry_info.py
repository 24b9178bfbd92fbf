"""What is registered, as metrics: shown as it is now, and no longer once it is gone."""

from dataclasses import replace

from prometheus_client import CollectorRegistry
from telemetry_support.outcomes import MODEL, VECTORS, make_metrics, outcome, probe_info, samples_of, scored

from pilothouse.telemetry.metrics import Metrics


def named(metrics: Metrics, *names: str) -> dict[tuple[str, ...], float]:
    """Values by metric, name and version of what they are of."""
    return {
        (name, dict(labels).get("probe", dict(labels).get("vector", "")), dict(labels).get("version", "")): value
        for (name, labels), value in samples_of(metrics.collect()).items()
        if name in names
    }


def test_infos_are_those_of_the_present_registry(registry: CollectorRegistry) -> None:
    names = ("pilothouse_probe_info", "pilothouse_probe_threshold", "pilothouse_vector_info")
    metrics = make_metrics(registry, probe_info("p", 0.5), probe_info("q", 0.25, "sha256:2"))
    metrics.observe(outcome(scored(0.5)))
    assert named(metrics, *names) == {
        ("pilothouse_probe_info", "p", "sha256:1"): 1,
        ("pilothouse_probe_info", "q", "sha256:2"): 1,
        ("pilothouse_probe_threshold", "p", ""): 0.5,
        ("pilothouse_probe_threshold", "q", ""): 0.25,
        ("pilothouse_vector_info", "v", "sha256:3"): 1,
        ("pilothouse_vector_info", "w", "sha256:4"): 1,
    }
    metrics.show_registry(MODEL, [replace(probe_info("p", 0.5), version="sha256:9", threshold=0.75)], VECTORS[1:])
    assert named(metrics, *names) == {
        ("pilothouse_probe_info", "p", "sha256:9"): 1,
        ("pilothouse_probe_threshold", "p", ""): 0.75,
        ("pilothouse_vector_info", "w", "sha256:4"): 1,
    }


def test_an_info_says_what_the_card_says(metrics: Metrics, registry: CollectorRegistry) -> None:
    labels = {"model_name": MODEL, "probe": "p", "version": "sha256:1", "layers": "2,3", "aggregate": "max"}
    labels |= {"calibration": "platt", "alarm": "high"}
    assert registry.get_sample_value("pilothouse_probe_info", labels) == 1


def test_features_can_be_told_from_probes_before_any_request(registry: CollectorRegistry) -> None:
    metrics = make_metrics(registry, probe_info("p"), replace(probe_info("busy"), calibration="rectified"))
    assert named(metrics, "pilothouse_feature_tokens_total") == {("pilothouse_feature_tokens_total", "busy", ""): 0}
