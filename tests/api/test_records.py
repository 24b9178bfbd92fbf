"""What stays of a request once it has ended: its record, and the metrics, which must agree."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import write_all
from api_support.client import HEADERS, INLINE, Client, assert_refused, connect, strict_json
from api_support.fake_engine import CHAT, FakeServer
from api_support.reference import sigmoid

from pilothouse.api.results import ResultsStore
from pilothouse.api.session import steering_label
from pilothouse.core.config import ServerConfig
from pilothouse.core.errors import NotFound, StartupError
from pilothouse.core.listing import TokenTable
from pilothouse.core.records import RequestOutcome

MIXED: list[dict[str, Any]] = [
    {"probes": ["risk", "truthfulness"], "n": 3},
    {"probes": ["risk"], "steering": [{"vector": "calm", "positions": "generation"}], "n": 2},
    {"probes": ["risk"], "steering": [{"vector": "honest"}, {"vector": "calm"}, {"vector": "calm"}]},
    {"probes": ["truthfulness"], "steering": [{"sae": "features", "feature": 1}, INLINE]},
    {"probes": ["risk", "early"], "max_tokens": 1},
    {"steering": [{"vector": "honest", "positions": "last_prompt"}]},
    {"probes": ["risk"], "fake": {"poisoned": [0, 1, 2, 3, 4, 5]}},
    {},
]


async def record_of(client: Client, user: str, **body: Any) -> dict[str, Any]:
    response = await client.chat(user=user, **body)
    assert response.status_code == 200, response.text
    found = await client.http.get(f"/v1/probes/results/chatcmpl-{user}", headers=HEADERS)
    record = strict_json(found.content)
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize("stream", [False, True])
async def test_metrics_count_what_the_records_say(server: FakeServer, client: Client, stream: bool) -> None:
    records = [await record_of(client, f"r{i}", **body, stream=stream) for i, body in enumerate(MIXED[:-1])]
    await client.chat(**MIXED[-1], stream=stream)
    metric = server.metrics_registry.get_sample_value

    def value(name: str, **labels: str) -> float:
        return metric(f"pilothouse_{name}", {"model_name": "tiny", **labels}) or 0.0

    probed = [
        (record["steering"], name, probe)
        for record in records
        for choice in record["choices"]
        for name, probe in choice.get("probes", {}).items()
    ]
    scored: Counter[tuple[str, str]] = Counter((s, n) for s, n, p in probed if p["score"] is not None)
    assert set(scored) > {("none", "risk"), ("calm", "risk"), ("calm+honest", "risk"), ("adhoc", "truthfulness")}
    for (steering, name), count in scored.items():
        here = [p for s, n, p in probed if (s, n) == (steering, name)]
        labels = {"probe": name, "steering": steering}
        assert value("probe_score_count", **labels) == count
        total = sum(p["score"] for p in here if p["score"] is not None)
        assert value("probe_score_sum", **labels) == pytest.approx(total)
        # None of these probes has a token calibration.
        ends = [sigmoid(p["stats"]["prompt_end"]) for p in here if p["stats"]["prompt_end"] is not None]
        assert value("probe_prompt_end_count", **labels) == len(ends)
        assert value("probe_prompt_end_sum", **labels) == pytest.approx(math.fsum(ends))
    for name in ("risk", "truthfulness", "early"):
        here = [p for _, n, p in probed if n == name]
        assert value("probe_tokens_total", probe=name) == sum(p["n_scored"] for p in here)
        for flagged in (True, False):
            count = sum(p["score"] is not None and p["flagged"] is flagged for p in here)
            assert value("probe_requests_total", probe=name, flagged=str(flagged).lower()) == count
        for reason in ("one_generated_token", "not_finite"):
            count = sum(p.get("reason") == reason for p in here)
            assert count > 0 or name != "risk", "each is seen at least once"
            assert value("probe_unscored_total", probe=name, reason=reason) == count


async def test_thresholds_of_the_loaded_probes_are_buckets(server: FakeServer, client: Client) -> None:
    await client.chat(probes=["risk"])
    await client.chat(probes=["truthfulness"])
    for probe, threshold in (("risk", "0.875"), ("truthfulness", "0.43")):
        labels = {"model_name": "tiny", "probe": probe, "steering": "none", "le": threshold}
        assert server.metrics_registry.get_sample_value("pilothouse_probe_score_bucket", labels) is not None


async def test_steering_is_counted_by_configured_name(server: FakeServer, client: Client) -> None:
    receipts: Counter[str] = Counter()
    for body in MIXED:
        for choice in (await client.chat(**body)).json()["choices"]:
            for receipt in choice.get("steering", []):
                name = receipt.get("vector") or receipt.get("sae") or "adhoc"
                receipts[name] += receipt["tokens_edited"]
    metric = server.metrics_registry.get_sample_value
    requests = {"calm": 2, "honest": 2, "features": 1, "adhoc": 1}
    assert set(receipts) == set(requests)
    for name, count in requests.items():
        labels = {"model_name": "tiny", "vector": name}
        assert metric("pilothouse_steering_requests_total", labels) == count
        assert metric("pilothouse_steering_tokens_total", labels) == receipts[name]


async def test_a_record_is_what_the_response_said(client: Client) -> None:
    body: dict[str, Any] = {"probes": {"names": ["risk"], "tokens": True}, "steering": [{"vector": "calm"}], "n": 2}
    record = await record_of(client, "me", **body)
    choices = (await client.chat(**body)).json()["choices"]
    assert (record["id"], record["route"], record["model"], record["steering"]) == ("chatcmpl-me", CHAT, "tiny", "calm")
    assert record["error"] is None
    for kept, said in zip(record["choices"], choices, strict=True):
        assert kept == {key: said[key] for key in ("index", "finish_reason", "steering", "probes")}


async def test_an_aborted_stream_is_recorded_as_such(server: FakeServer, client: Client) -> None:
    response = await client.chat(stream=True, user="gone", probes=["risk"], n=2, fake={"abort": 1, "late": 3})
    assert "[DONE]" not in response.text
    record = (await client.http.get("/v1/probes/results/chatcmpl-gone", headers=HEADERS)).json()
    assert record["error"] == "aborted"
    assert [c["probes"]["risk"]["reason"] for c in record["choices"]] == ["aborted", "aborted"]
    labels = {"model_name": "tiny", "probe": "risk", "reason": "aborted"}
    assert server.metrics_registry.get_sample_value("pilothouse_probe_unscored_total", labels) == 2


async def test_a_stream_that_broke_is_recorded_as_such(client: Client) -> None:
    await client.chat(stream=True, user="dead", probes=["risk"], fake={"fails": True})
    record = (await client.http.get("/v1/probes/results/chatcmpl-dead", headers=HEADERS)).json()
    assert record["error"] == "error"
    assert record["choices"][0]["probes"]["risk"]["reason"] == "error"


async def test_a_session_is_recorded_once(server: FakeServer, client: Client) -> None:
    await client.chat(probes=["risk"])
    server.sessions[-1].close("late")
    labels = {"model_name": "tiny", "probe": "risk", "steering": "none"}
    assert server.metrics_registry.get_sample_value("pilothouse_probe_score_count", labels) == 1


async def test_records_need_the_key_where_there_is_one(client: Client, tmp_path: Path) -> None:
    await client.chat(user="me", probes=["risk"])
    assert_refused(await client.http.get("/v1/probes/results/chatcmpl-me"), None, 401)
    assert_refused(await client.http.get("/v1/probes/results/chatcmpl-you", headers=HEADERS), None, 404)
    (tmp_path / "open").mkdir()
    async with connect(FakeServer(write_all(tmp_path / "open", admin_key=None))) as http:
        await Client(http).chat(user="me", probes=["risk"])
        assert (await http.get("/v1/probes/results/chatcmpl-me")).status_code == 200


def outcome(response_id: str, text: str = "") -> RequestOutcome:
    return RequestOutcome(response_id, "tiny", CHAT, "none", (), 0.0, (), ({"text": text},))


def test_the_store_is_bounded() -> None:
    store = ResultsStore(max_records=2)
    for name in ("a", "b"):
        store.observe(outcome(name))
    store.read("a")
    store.observe(outcome("c"))
    assert store.read("a")
    with pytest.raises(NotFound):
        store.read("b")
    small = ResultsStore(max_bytes=1000)
    for name in ("a", "b", "b", "c"):
        small.observe(outcome(name, "x" * 400))
    with pytest.raises(NotFound):
        small.read("a")
    assert small.read("c")
    again = ResultsStore(max_bytes=1000)
    for name in ("a", "b", "b", "b"):
        again.observe(outcome(name, "x" * 200))
    assert again.read("a"), "a record that replaces another takes its room"
    wide = ResultsStore(max_bytes=3000)
    for name in ("a", "b"):
        wide.observe(outcome(name, "x" * 300 + "\U0001f642"))
    with pytest.raises(NotFound):
        wide.read("a")
    listed = ResultsStore(max_bytes=100_000)
    values = np.zeros((64, 100), np.float32)
    for name in ("a", "b"):
        tokens = TokenTable(["word"] * 100, range(100), values, values, lambda j: None).listings()
        listed.observe(RequestOutcome(name, "tiny", CHAT, "none", (), 0.0, (), ({"tokens": tokens},)))
    with pytest.raises(NotFound):
        listed.read("a")
    (choice,) = strict_json(listed.read("b"))["choices"]
    assert [len(tokens) for tokens in choice["tokens"]] == [100] * 64
    store.observe(outcome(""))
    with pytest.raises(NotFound):
        store.read("")


def test_a_record_holds_no_number_that_json_has_not() -> None:
    store = ResultsStore()
    body = {"nan": math.nan, "inf": [math.inf, -math.inf, 0.1, 1e22], "word": "\u2028é"}
    store.observe(RequestOutcome("a", "tiny", CHAT, "none", (), 0.0, (), (body,)))
    (choice,) = strict_json(store.read("a"))["choices"]
    assert choice == {"nan": None, "inf": [None, None, 0.1, 1e22], "word": "\u2028é"}


def test_a_store_of_no_records_keeps_none() -> None:
    store = ResultsStore(max_records=0)
    store.observe(outcome("a"))
    with pytest.raises(NotFound, match="keeps none"):
        store.read("a")


def test_a_record_counts_those_that_it_replaced() -> None:
    store = ResultsStore(max_records=2)
    for text in ("first", "second", "third"):
        store.observe(outcome("a", text))
    record = strict_json(store.read("a"))
    assert (record["replaced"], record["choices"]) == (2, [{"text": "third"}])
    store.observe(outcome("b"))
    assert strict_json(store.read("b"))["replaced"] == 0
    store.observe(outcome("c"))
    store.observe(outcome("a"))
    assert strict_json(store.read("a"))["replaced"] == 0, "what was given up is forgotten"


async def test_how_many_records_are_kept_is_configured_and_shown(tmp_path: Path) -> None:
    async with connect(FakeServer(write_all(tmp_path, max_results=1, admin_key=None))) as http:
        for user in ("a", "b"):
            await Client(http).chat(user=user, probes=["risk"])
        assert (await http.get("/v1/probes/results/chatcmpl-a")).status_code == 404
        assert (await http.get("/v1/probes/results/chatcmpl-b")).status_code == 200
        assert (await http.get("/v1/capabilities")).json()["limits"]["max_results"] == 1


def test_the_configuration_travels_whole(tmp_path: Path) -> None:
    config = write_all(tmp_path, max_results=7, default_probes=("risk",))
    assert ServerConfig.from_json(config.to_json()) == config
    assert ServerConfig.from_json("{}") == ServerConfig()
    with pytest.raises(StartupError, match="max_results"):
        ServerConfig(max_results=-1)


@pytest.mark.parametrize(
    ("names", "label"),
    [((), "none"), (("b",), "b"), (("b", "a"), "a+b"), (("a", "adhoc"), "adhoc"), (("a", "b", "c", "d"), "adhoc")],
)
def test_the_steering_label_is_bounded(names: tuple[str, ...], label: str) -> None:
    assert steering_label(names, max_names=3) == label
