"""The page that is scraped: its format by what the client asks, names, compression."""

import gzip

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from telemetry_support.outcomes import outcome, parsed, samples_of, scored

from pilothouse.telemetry.exposition import render
from pilothouse.telemetry.metrics import Metrics

PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.1"
)


@pytest.fixture
def crowded(metrics: Metrics, registry: CollectorRegistry) -> Metrics:
    """Metrics beside others' in their registry, with colons as vLLM's have."""
    Counter("vllm:prompt_tokens", "Tokens.", ["model_name"], registry=registry).labels("m").inc(3)
    Gauge("vllm:num_requests_running", "Requests.", registry=registry).set(2)
    metrics.observe(outcome(scored(0.5)))
    return metrics


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html", "text/plain;version=0.0.4"])
def test_text_is_what_prometheus_client_writes(crowded: Metrics, registry: CollectorRegistry, accept: str) -> None:
    page = render(crowded, accept)
    assert page.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert page.body == generate_latest(registry)
    assert b'vllm:prompt_tokens_total{model_name="m"} 3.0' in page.body


@pytest.mark.parametrize("accept", [PROMETHEUS_2, PROMETHEUS_3, "application/openmetrics-text"])
def test_openmetrics_has_the_same_names_and_values(crowded: Metrics, accept: str) -> None:
    page = render(crowded, accept)
    assert page.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert page.body.endswith(b"# EOF\n")
    families = list(text_string_to_metric_families(page.body.decode()))  # type: ignore[no-untyped-call]
    assert {family.name for family in families} > {"vllm:prompt_tokens", "pilothouse_probe_score"}
    assert samples_of(families) == parsed(render(crowded).body.decode())


def test_names_that_need_quotes_leave_all_escaped(crowded: Metrics, registry: CollectorRegistry) -> None:
    Gauge("a.b", "Not a name that Prometheus 2 can read.", registry=registry)
    assert b"\na_b 0.0" in render(crowded, PROMETHEUS_2).body


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [("gzip", True), ("deflate, gzip;q=0.8", True), ("", False), ("gzip;q=0", False), ("br", False), ("GZIP", True)],
)
def test_it_is_compressed_for_who_can_read_that(crowded: Metrics, accepted: str, compressed: bool) -> None:
    page = render(crowded, "", accepted)
    assert (page.headers.get("Content-Encoding") == "gzip") is compressed
    plain = gzip.decompress(page.body) if compressed else page.body
    assert plain == render(crowded).body
