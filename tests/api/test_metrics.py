"""The metrics endpoint over HTTP: it agrees with the records whatever the traffic, and repeats nothing of clients."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_support.artefacts import RISK, RISK_ROWS, artefact, write_all
from api_support.client import HEADERS, INLINE, Client, connect
from api_support.fake_engine import COMPLETIONS, FakeServer
from api_support.vllm_routes import FakeVllm
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client.multiprocess import MultiProcessCollector
from telemetry_support.outcomes import EXACT, Samples, counted, expected, parsed, samples_of
from telemetry_support.traffic import MIXED, THRESHOLDS, Taker, send, watch

from pilothouse.telemetry.names import FIXED_WORDS

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NAMES = {"tiny", "truthfulness", "risk", "early", "honest", "calm", "features", "bare", "topk"}


@pytest.fixture
def taker(server: FakeServer) -> Taker:
    return watch(server)


async def scrape(http: httpx.AsyncClient) -> Samples:
    response = await http.get("/metrics")
    assert response.status_code == 200
    return parsed(response.text)


async def test_counts_are_those_of_the_records_under_load(client: Client, taker: Taker) -> None:
    pages: list[Samples] = []

    async def look(sending: asyncio.Task[Any]) -> None:
        while not sending.done():
            pages.append(await scrape(client.http))
            await asyncio.sleep(0.005)

    requests = MIXED * 3
    sending = asyncio.create_task(send(client.http, requests))
    await look(sending)
    statuses = sending.result()
    assert set(statuses) == {200, 500}
    pages.append(await scrape(client.http))
    assert len(taker.taken) == sum(1 for body in requests if not body.get("unwatched"))
    assert counted(pages[-1]) == pytest.approx(expected(taker.taken, THRESHOLDS), rel=EXACT)
    reasons = {probe.reason for outcome in taker.taken for choice in outcome.choices for probe in choice.probes}
    assert reasons == {None, "one_generated_token", "not_finite", "aborted", "error", "engine_gap"}
    for before, after in pairwise(pages):
        # Whatever was in flight: no count ever falls.
        assert [key for key, count in counted(before).items() if after[key] < count] == []


async def test_a_flagged_request_is_the_exemplar_of_its_bucket(client: Client) -> None:
    await client.chat(user="me", probes=["risk"], steering=[{"vector": "calm"}])
    page = (await client.http.get("/metrics", headers={"Accept": OPENMETRICS})).text
    lines = [line for line in page.splitlines() if 'request_id="chatcmpl-me"' in line]
    assert {line.partition("{")[0] for line in lines} == {
        "pilothouse_requests_total",
        "pilothouse_probe_requests_total",
        "pilothouse_probe_score_bucket",
        "pilothouse_probe_prompt_end_bucket",
    }
    assert page.endswith("# EOF\n")


async def test_the_threshold_of_an_upload_is_a_bucket_at_once(client: Client) -> None:
    async def bounds() -> set[str]:
        labels = [dict(key[1]) for key in await scrape(client.http) if key[0] == "pilothouse_probe_score_bucket"]
        return {found["le"] for found in labels if found["probe"] == "risk"}

    async def info(name: str) -> dict[tuple[str, ...], float]:
        found = await scrape(client.http)
        return {
            (dict(labels)["probe"], dict(labels).get("version", "")): value
            for (metric, labels), value in found.items()
            if metric == name
        }

    await client.chat(probes=["risk"])
    assert "0.875" in await bounds()
    before = await info("pilothouse_probe_info")
    file = artefact("probe", {**RISK, "threshold": 0.8125}, RISK_ROWS)
    uploaded = await client.http.post("/v1/probes?replace=true", content=file, headers=HEADERS)
    assert uploaded.status_code == 200
    assert {"0.875", "0.8125"} <= await bounds()
    assert (await info("pilothouse_probe_threshold"))["risk", ""] == 0.8125
    after = await info("pilothouse_probe_info")
    assert {name for name, _ in after} == {name for name, _ in before}
    assert ("risk", uploaded.json()["digest"]) in after.keys() - before.keys()
    assert (await client.http.delete("/v1/probes/risk", headers=HEADERS)).status_code == 200
    assert {name for name, _ in await info("pilothouse_probe_info")} == {"truthfulness", "early"}


def label_values(samples: Samples) -> set[str]:
    """Those that name something, or say where."""
    return {
        value
        for (name, labels) in samples
        if name.startswith("pilothouse_") and not name.endswith("_info")
        for label, value in labels
        if label in ("model_name", "probe", "vector", "steering", "route", "reason")
    }


texts = st.one_of(st.sampled_from(["none", "adhoc", 'x"} 1\n', "risk ", "RISK", "é\ud800"]), st.text())


def some(*configured: str) -> st.SearchStrategy[str]:
    """Mostly names that exist, so that some requests are served."""
    return st.one_of(*[st.sampled_from(configured)] * 6, texts)


features = st.builds(lambda name, feature: {"sae": name, "feature": feature}, some("features"), st.integers(0, 4))
vectors = st.lists(
    st.one_of(st.builds(lambda name: {"vector": name}, some("calm", "honest")), features, st.just(INLINE)), max_size=5
)
probes = st.lists(st.one_of(some("truthfulness", "risk", "early"), features), max_size=3)
bodies = st.fixed_dictionaries(
    {"model": texts, "user": st.text()},
    optional={"steering": vectors, "probes": probes, "max_tokens": st.integers(1, 3), "n": st.integers(1, 2)},
)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[FakeServer]:
    """A server that every example of a test asks; some of them it must have served."""
    server = FakeServer(write_all(tmp_path))
    taker = watch(server)
    yield server
    served = {outcome.steering for outcome in taker.taken}
    assert {"none", "adhoc", "calm"} <= served


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(several=st.lists(bodies, min_size=1, max_size=4))
@example(several=[{"probes": ["risk"], "steering": steering} for steering in ([], [INLINE], [{"vector": "calm"}])])
def test_hostile_names_are_never_labels(others: FakeServer, several: list[dict[str, Any]]) -> None:
    async def ask() -> Samples:
        async with connect(others) as http:
            for body in several:
                response = await http.post(COMPLETIONS, content=json.dumps({"prompt": "x", **body}))
                assert response.status_code in (200, 400)
            return await scrape(http)

    samples = asyncio.run(ask())
    joined = {value for value in label_values(samples) if "+" in value}
    assert all(set(value.split("+")) <= NAMES for value in joined)
    assert label_values(samples) - joined <= NAMES | FIXED_WORDS


@pytest.fixture
async def vllm(server: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(FakeVllm(server).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://pilothouse") as http:
        yield http


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_model_that_is_not_served_is_never_counted(vllm: httpx.AsyncClient, client: Client, path: str) -> None:
    said = {"input": "x"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "x"}]}
    for model, status in (("tiny", 200), ("evil", 404), ('tiny"} 1\n', 404), ("tiny:evil", 404)):
        body = {**said, "model": model, "max_tokens": 4, "max_output_tokens": 4, "probes": ["risk"]}
        assert (await vllm.post(path, json=body)).status_code == status
    samples = await scrape(client.http)
    models = {dict(labels)["model_name"] for name, labels in samples if name.startswith("pilothouse_probe")}
    assert models == {"tiny"}
    labels = frozenset({"model_name": "tiny", "route": path, "steering": "none"}.items())
    assert samples["pilothouse_requests_total", labels] == 1


async def test_a_failing_sink_is_counted(server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(outcome: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(server.app.state.pilothouse.results, "observe", full)
    await client.chat(probes=["risk"])
    samples = await scrape(client.http)
    assert samples["pilothouse_sink_errors_total", frozenset({("sink", "ResultsStore")})] == 1
    scored = frozenset({"model_name": "tiny", "probe": "risk", "steering": "none"}.items())
    assert samples["pilothouse_probe_score_count", scored] == 1


async def test_metrics_that_cannot_take_a_change_do_not_stop_it(
    server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(server.app.state.pilothouse.metrics, "show_registry", broken)
    assert (await client.http.delete("/v1/probes/risk", headers=HEADERS)).status_code == 200
    assert (await client.chat(probes=["risk"])).status_code == 400
    assert "could not take in a change of the registry" in caplog.text


def test_two_servers_count_what_their_records_say(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "telemetry_support.traffic"]
    servers = [
        subprocess.Popen([*command, str(times)], env=environment, stdout=subprocess.PIPE, text=True) for times in (1, 2)
    ]
    together: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for server in servers:
        said, _ = server.communicate(timeout=120)
        assert server.returncode == 0
        for name, labels, count in json.loads(said):
            together[name, frozenset(labels.items())] += count
    merged = MultiProcessCollector(None, str(tmp_path)).collect()  # type: ignore[no-untyped-call]
    assert together
    assert counted(samples_of(merged)) == pytest.approx(dict(together), rel=EXACT)
