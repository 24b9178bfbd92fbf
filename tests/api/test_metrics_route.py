"""Who answers at /metrics in the application that vLLM builds, and that vLLM's own metrics are there as they were."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_support.artefacts import write_all
from api_support.fake_engine import FakeServer
from prometheus_client import REGISTRY, Counter
from telemetry_support.outcomes import make_metrics, outcome, samples_of, scored
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def application(monkeypatch: pytest.MonkeyPatch, plugins: str) -> Any:
    """What `vllm serve` builds with these plugins, without an engine behind it."""
    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    # What vLLM has read of the environment it may keep.
    monkeypatch.setattr("vllm.plugins.envs.VLLM_PLUGINS", [plugins], raising=False)
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    return build_app(args, ("generate",))


@pytest.fixture
def clean_registry() -> Any:
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.fixture
async def both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registry: None
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of vLLM's application as it is and with Pilothouse in it, which share their metrics."""
    plain, ours = application(monkeypatch, ""), application(monkeypatch, "pilothouse")
    metrics = make_metrics(REGISTRY)
    metrics.observe(outcome(scored(0.5), response_id="behind"))
    Counter("vllm:prompt_tokens", "Tokens.", ["model_name"]).labels("m").inc(3)
    ours.state.pilothouse = replace(FakeServer(write_all(tmp_path)).app.state.pilothouse, metrics=metrics)
    transports = [httpx.ASGITransport(app) for app in (plain, ours)]
    async with (
        httpx.AsyncClient(transport=transports[0], base_url="http://vllm") as before,
        httpx.AsyncClient(transport=transports[1], base_url="http://pilothouse") as after,
    ):
        yield before, after


def lines(page: str) -> list[str]:
    """Those that do not change by themselves."""
    return [line for line in page.splitlines() if "process_" not in line and "python_gc" not in line]


async def test_text_is_what_vllm_shows(both: tuple[httpx.AsyncClient, httpx.AsyncClient]) -> None:
    before, after = both
    await before.get("/docs")
    shown = lines((await before.get("/metrics")).text)
    assert 'vllm:prompt_tokens_total{model_name="m"} 3.0' in shown
    assert any(line.startswith("http_requests_total") for line in shown)
    assert any(line.startswith("pilothouse_probe_info") for line in shown)
    for path in ("/metrics", "/metrics/"):
        assert lines((await after.get(path)).text) == shown


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_openmetrics_has_exemplars(both: tuple[httpx.AsyncClient, httpx.AsyncClient], path: str) -> None:
    before, after = both
    headers = {"Accept": OPENMETRICS}
    response = await after.get(path, headers=headers)
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert '# {request_id="behind"}' in response.text
    assert 'vllm:prompt_tokens_total{model_name="m"} 3.0' in response.text.splitlines()
    assert '"behind"' not in (await before.get(path, headers=headers)).text


async def test_scrapes_are_not_counted_as_requests(both: tuple[httpx.AsyncClient, httpx.AsyncClient]) -> None:
    _, after = both
    await after.get("/metrics")
    handlers = {dict(labels).get("handler") for name, labels in samples_of(REGISTRY.collect()) if "http_" in name}
    assert "/metrics" not in handlers
