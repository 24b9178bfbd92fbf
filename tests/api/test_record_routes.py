"""Records over HTTP where a database keeps them: found, listed, exported and labelled."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from api_support.artefacts import write_all
from api_support.client import Client, assert_refused, connect, strict_json
from api_support.fake_engine import CHAT, FakeServer
from fastapi import FastAPI
from records_support.faults import locked
from records_support.outcomes import expected, scored
from vllm.entrypoints.launchers.utils.server_utils import lifespan as vllm_lifespan

from pilothouse.api.peers import Peers
from pilothouse.api.plugin import PilothousePlugin, answer_peer
from pilothouse.core.config import RecordsConfig
from pilothouse.core.errors import StartupError
from pilothouse.core.siblings import Siblings
from pilothouse.records import database
from pilothouse.records.service import Records
from pilothouse.records.store import RecordStore

RESULTS = "/v1/probes/results"


@dataclass
class Served:
    """A server that keeps records in a file, and a client of it."""

    server: FakeServer
    client: Client
    path: Path

    @property
    def http(self) -> httpx.AsyncClient:
        return self.client.http

    async def answer(self, user: str, **body: Any) -> str:
        """The id of a response."""
        response = await self.client.chat(user=user, **body)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    async def listed(self, **params: Any) -> list[str]:
        response = await self.http.get(RESULTS, params=params)
        assert response.status_code == 200, response.text
        return [record["id"] for record in strict_json(response.content)["data"]]


def records_in(server: FakeServer) -> Records:
    records = server.app.state.pilothouse.records
    assert isinstance(records, Records)
    return records


@contextmanager
def serving(folder: Path, path: Path, **config: Any) -> Iterator[FakeServer]:
    folder.mkdir(exist_ok=True)
    records = RecordsConfig(f"sqlite:///{path}")
    peers = config.pop("peers", None)
    server = FakeServer(write_all(folder, admin_key=None, records=records, **config), peers=peers)
    try:
        yield server
    finally:
        records_in(server).writer.close()


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    path = tmp_path / "records.sqlite"
    with serving(tmp_path / "served", path) as server:
        async with connect(server) as http:
            yield Served(server, Client(http), path)


async def test_what_memory_gave_up_is_in_the_database(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    with serving(tmp_path / "one", path, max_results=1) as server:
        async with connect(server) as http:
            names = ["a", "b", "c"]
            for name in names:
                await Client(http).chat(user=name, probes={"names": ["risk"], "tokens": True}, n=2)
            found = [(await http.get(f"{RESULTS}/chatcmpl-{name}")).json() for name in names]
            in_memory = json.loads(server.app.state.pilothouse.results.read("chatcmpl-c"))
            assert [record["id"] for record in found] == ["chatcmpl-a", "chatcmpl-b", "chatcmpl-c"]
            assert {**in_memory, "labels": []} == found[2]
            assert found[0]["choices"][1]["probes"]["risk"]["tokens"]
            assert_refused(await http.get(f"{RESULTS}/chatcmpl-d"), None, 404)
    with serving(tmp_path / "two", path) as server:
        async with connect(server) as http:
            assert (await http.get(f"{RESULTS}/chatcmpl-a")).json() == found[0], "a restart forgets nothing"


async def test_every_request_with_a_plan_is_listed_the_newest_first(served: Served) -> None:
    ids = [await served.answer(f"r{i}", probes=["risk", "truthfulness"], stream=False) for i in range(7)]
    await served.client.chat(user="plain", probes=[])
    await served.client.chat(user="streamed", probes=["risk"], stream=True)
    ids.append("chatcmpl-streamed")
    ids.append(await served.answer("steered", steering=[{"vector": "calm"}]))
    assert await served.listed() == ids[::-1]
    pages, after = [], None
    while True:
        more: dict[str, str] = {} if after is None else {"after": after}
        page = (await served.http.get(RESULTS, params={"limit": 4, **more})).json()
        assert set(page) == {"object", "data", "has_more", "next"}
        assert page["object"] == "list"
        pages.append([record["id"] for record in page["data"]])
        after = page["next"]
        assert page["has_more"] == (after is not None)
        if after is None:
            break
    assert pages == [ids[8:4:-1], ids[4:0:-1], ids[:1]]


async def test_filters_by_name(served: Served) -> None:
    served_scores = {}
    for i in range(6):
        body: dict[str, Any] = {"steering": [{"vector": "calm"}]} if i % 2 else {}
        name = await served.answer(f"r{i}", probes=["risk"], max_tokens=2 + i, **body)
        record = (await served.http.get(f"{RESULTS}/{name}")).json()
        served_scores[name] = record["choices"][0]["probes"]["risk"]["score"]
        if i == 2:
            middle = record["time"]
    ids = list(served_scores)
    everyone = set(ids)
    assert set(await served.listed(probe="risk")) == everyone
    assert await served.listed(probe="early") == await served.listed(model="other") == []
    assert set(await served.listed(model="tiny", route=CHAT)) == everyone
    assert set(await served.listed(steering="calm")) == {ids[1], ids[3], ids[5]}
    assert set(await served.listed(since=middle)) == set(ids[2:])
    assert set(await served.listed(until=middle)) == set(ids[:2])
    assert await served.listed(since="2999-01-01") == []
    assert set(await served.listed(since="2001-02-03T04:05:06Z", until="2999-01-01T00:00:00+01:00")) == everyone
    high = {name for name, score in served_scores.items() if score > 0.875}
    assert set(await served.listed(flagged="true")) == set(await served.listed(flagged="true", probe="risk")) == high
    assert set(await served.listed(flagged="false")) == everyone - high
    by_score = sorted(served_scores.values())
    assert [served_scores[name] for name in await served.listed(probe="risk", order="score")] == by_score[::-1]
    assert [served_scores[name] for name in await served.listed(probe="risk", order="score_asc")] == by_score
    assert {served_scores[name] for name in await served.listed(min_score=by_score[2])} == set(by_score[2:])
    assert {served_scores[name] for name in await served.listed(max_score=by_score[2])} == set(by_score[:3])


BAD_QUERIES = [
    ("flaged=true", "flaged"),
    ("format=parquet", "format"),
    ("flagged=maybe", "flagged"),
    ("flagged=", "flagged"),
    ("flagged=true&flagged=false", "flagged"),
    ("since=yesterday", "since"),
    ("since=nan", "since"),
    ("until=2026-13-01", "until"),
    ("label=yes", "label"),
    ("min_score=high", "min_score"),
    ("max_score=inf", "max_score"),
    ("order=size", "order"),
    ("order=score", "probe"),
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=ten", "limit"),
    ("limit=%D9%A3", "limit"),
    ("limit=-1", "limit"),
    ("after=nowhere", "after"),
]


async def test_queries_that_cannot_be(served: Served) -> None:
    for query, param in BAD_QUERIES:
        assert_refused(await served.http.get(f"{RESULTS}?{query}"), param)
        if param not in ("format", "order", "limit", "after") and "order" not in query:
            assert_refused(await served.http.get(f"{RESULTS}/export?format=parquet&{query}"), param)


async def test_hostile_values_find_nothing_and_break_nothing(served: Served) -> None:
    await served.answer("me", probes=["risk"])
    for value in ("nul\x00", "' OR 1=1 --", "%", "x" * 4_000, "naïve 🦜"):
        for name in ("probe", "model", "steering", "route"):
            assert await served.listed(**{name: value}) == []
        assert_refused(await served.http.get(f"{RESULTS}/{quote(value)}"), None, 404)
    assert await served.listed() == ["chatcmpl-me"]


async def test_ids_that_are_words_or_paths_of_the_interface_are_found(served: Served) -> None:
    names = ["export", "a/b", "a/label", "label"]
    requests = [scored(i, 0.5, response_id=name) for i, name in enumerate(names)]
    for request in requests:
        records_in(served.server).writer.observe(request)
    for name, request in zip(names, requests, strict=True):
        assert (await served.http.get(f"{RESULTS}/{name}")).json() == expected(request)
        said = await served.http.post(f"{RESULTS}/{name}/label", json={"probe": "risk", "value": True, "source": "me"})
        assert said.status_code == 200, said.text
        assert said.json()["id"] == name
    exported = await served.http.get(f"{RESULTS}/export?format=parquet")
    assert exported.headers["content-type"] == "application/vnd.apache.parquet"


async def test_the_file_of_an_export_is_the_list(served: Served) -> None:
    for i in range(5):
        await served.answer(f"r{i}", probes=["risk"], max_tokens=2 + i)
    for params in ({}, {"probe": "risk", "flagged": "false"}, {"probe": "early"}):
        response = await served.http.get(f"{RESULTS}/export", params={"format": "parquet", **params})
        assert response.status_code == 200
        assert 'filename="records.parquet"' in response.headers["content-disposition"]
        rows = pq.read_table(io.BytesIO(response.content)).to_pylist()
        listed = (await served.http.get(RESULTS, params=params)).json()["data"]
        records = [{**json.loads(row["record"]), "replaced": 0, "labels": row["labels"]} for row in rows]
        assert records == listed[::-1]
    assert_refused(await served.http.get(f"{RESULTS}/export?format=csv"), "format")


async def test_labels_are_stored_and_shown(served: Served) -> None:
    name = await served.answer("me", probes=["risk"], n=2)
    label = {"probe": "risk", "value": True, "source": "me"}
    stored = (await served.http.post(f"{RESULTS}/{name}/label", json=label)).json()
    time = stored.pop("time")
    assert stored == {"id": name, "object": "probe.label", "choice": 0, **label}
    await served.http.post(f"{RESULTS}/{name}/label", json={**label, "value": False, "source": "checker", "choice": 1})
    labels = (await served.http.get(f"{RESULTS}/{name}")).json()["labels"]
    assert labels[0] == {"probe": "risk", "choice": 0, "value": True, "source": "me", "time": time}
    assert [(entry["source"], entry["choice"], entry["value"]) for entry in labels[1:]] == [("checker", 1, False)]
    other = await served.answer("you", probes=["risk"])
    assert await served.listed(label="true") == await served.listed(label="any", probe="risk") == [name]
    assert await served.listed(label="none") == [other]
    (found,) = records_in(served.server).store.quality()
    assert sum(found.counts.values()) == 2


BAD_LABELS: list[tuple[Any, str | None]] = [
    (b"{", None),
    (b"[]", None),
    ({}, "probe"),
    ({"probe": "risk", "value": "true", "source": "me"}, "value"),
    ({"probe": "risk", "value": 1, "source": "me"}, "value"),
    ({"probe": "risk", "value": True}, "source"),
    ({"probe": "risk", "value": True, "source": ""}, "source"),
    ({"probe": "risk", "value": True, "source": "x" * 201}, "source"),
    ({"probe": "risk", "value": True, "source": "me", "choice": -1}, "choice"),
    ({"probe": "risk", "value": True, "source": "me", "choice": 2**40}, "choice"),
    ({"probe": "risk", "value": True, "source": "me", "choice": 1}, "choice"),
    ({"probe": "risk", "value": True, "source": "me", "note": "x"}, "note"),
    ({"probe": "early", "value": True, "source": "me"}, "probe"),
    ({"probe": 7, "value": True, "source": "me"}, "probe"),
]


async def test_labels_that_cannot_be(served: Served) -> None:
    name = await served.answer("me", probes=["risk"])
    for body, param in BAD_LABELS:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert_refused(await served.http.post(f"{RESULTS}/{name}/label", content=content), param)
    assert (await served.http.get(f"{RESULTS}/{name}")).json()["labels"] == []


async def test_a_label_of_nothing_is_not_found(served: Served) -> None:
    label = {"probe": "risk", "value": True, "source": "me"}
    assert_refused(await served.http.post(f"{RESULTS}/chatcmpl-nobody/label", json=label), None, 404)


async def test_without_a_database_there_are_no_lists_and_no_labels(client: Client, server: FakeServer) -> None:
    assert server.app.state.pilothouse.records is None
    headers = {"Authorization": "Bearer a-key"}
    await client.chat(user="me", probes=["risk"])
    record = (await client.http.get(f"{RESULTS}/chatcmpl-me", headers=headers)).json()
    assert "labels" not in record
    label = {"probe": "risk", "value": True, "source": "me"}
    for response in (
        await client.http.get(RESULTS, headers=headers),
        await client.http.get(f"{RESULTS}/export?format=parquet", headers=headers),
        await client.http.post(f"{RESULTS}/chatcmpl-me/label", headers=headers, json=label),
    ):
        assert "keeps no database" in assert_refused(response, None, 404)["message"]


async def test_a_locked_database_delays_records_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    path = tmp_path / "records.sqlite"
    with serving(tmp_path / "served", path) as server:
        async with connect(server) as http:
            client = Client(http)
            with locked(path):
                for i in range(20):
                    assert (await client.chat(user=f"r{i}", probes=["risk"])).status_code == 200
                record = (await http.get(f"{RESULTS}/chatcmpl-r0")).json()
                assert record["choices"][0]["probes"]["risk"]["score"] is not None, "it is in memory"
                assert (await http.get(RESULTS)).json()["data"] == []
                label = {"probe": "risk", "value": True, "source": "me"}
                assert_refused(await http.post(f"{RESULTS}/chatcmpl-r0/label", json=label), None, 503)
            for _ in range(200):
                if len((await http.get(RESULTS)).json()["data"]) == 20:
                    break
                await asyncio.sleep(0.05)
            assert records_in(server).writer.counts()["written"] == 20


async def test_a_dead_database_costs_what_only_it_has(tmp_path: Path) -> None:
    in_the_way = tmp_path / "folder"
    in_the_way.write_text("a file")
    with serving(tmp_path / "served", in_the_way / "records.sqlite") as server:
        async with connect(server) as http:
            assert (await Client(http).chat(user="me", probes=["risk"])).status_code == 200
            record = (await http.get(f"{RESULTS}/chatcmpl-me")).json()
            assert record["labels"] is None, "nobody knows"
            for path in (RESULTS, f"{RESULTS}/chatcmpl-you", f"{RESULTS}/export?format=parquet"):
                assert_refused(await http.get(path), None, 503)
            records_in(server).writer.close(0.1)
            assert records_in(server).writer.counts()["shutdown"] == 1


async def test_the_end_of_the_server_writes_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    with serving(tmp_path / "served", path) as server:
        async with server.app.router.lifespan_context(server.app), connect(server) as http:
            for i in range(5):
                await Client(http).chat(user=f"r{i}", probes=["risk"])
        assert records_in(server).writer.counts() == {**records_in(server).writer.counts(), "written": 5, "queued": 0}
    store = RecordStore(f"sqlite:///{path}")
    assert store.find("chatcmpl-r4") is not None
    store.close()


async def test_it_is_written_before_vllm_drops_the_state(tmp_path: Path) -> None:
    app = FastAPI(lifespan=vllm_lifespan)
    app.state.log_stats = False
    PilothousePlugin().attach_router(app)
    with serving(tmp_path / "served", tmp_path / "records.sqlite") as server:
        app.state.pilothouse = server.app.state.pilothouse
        writer = records_in(server).writer
        async with app.router.lifespan_context(app):
            writer.observe(scored(1, 0.5))
        assert not hasattr(app, "state")
        assert writer.counts()["written"] == 1
        writer.observe(scored(2, 0.5))
        assert writer.counts()["shutdown"] == 1


async def test_what_another_api_server_answered_is_there(tmp_path: Path) -> None:
    path, meeting = tmp_path / "records.sqlite", tmp_path / "meeting"
    meeting.mkdir()
    peers = [Peers(Siblings(str(meeting), index, 2)) for index in range(2)]
    with (
        serving(tmp_path / "one", path, peers=peers[0], max_results=0) as one,
        serving(tmp_path / "other", path, peers=peers[1], max_results=0) as other,
    ):
        for server, peer in zip((one, other), peers, strict=True):
            await peer.listen(partial(answer_peer, server.app.state.pilothouse))
        async with connect(one) as http_one, connect(other) as http_other:
            for i in range(3):
                name = (await Client(http_one).chat(user=f"r{i}", probes=["risk"])).json()["id"]
                label = {"probe": "risk", "value": True, "source": "me"}
                said = await http_other.post(f"{RESULTS}/{name}/label", json=label)
                assert said.status_code == 200, said.text
                assert len((await http_other.get(RESULTS)).json()["data"]) == i + 1
        for peer in peers:
            peer.close()


def test_a_database_that_cannot_be_ends_the_start(tmp_path: Path) -> None:
    config = write_all(tmp_path, records=RecordsConfig("mysql://u:hunter2@h/db"))
    with pytest.raises(StartupError, match="sqlite or postgresql"):
        FakeServer(config)
