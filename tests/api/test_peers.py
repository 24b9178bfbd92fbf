"""Several API servers of one server: what one is told, all know by the time of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from api_support.artefacts import write_all
from api_support.client import HEADERS, Client, assert_refused, connect
from api_support.fake_engine import FakeServer
from api_support.uploads import RELOAD, SAES, VECTORS, post, sae, vector

from pilothouse.api.peers import Peers
from pilothouse.api.plugin import answer_peer
from pilothouse.core.config import ServerConfig
from pilothouse.core.errors import StartupError
from pilothouse.core.siblings import SIBLINGS_ENV, Siblings


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    (tmp_path / "meeting").mkdir()
    return write_all(tmp_path)


def start(config: ServerConfig, folder: Path, index: int) -> FakeServer:
    return FakeServer(config, peers=Peers(Siblings(str(folder / "meeting"), index, 2)))


async def listen(server: FakeServer) -> None:
    assert server.peers is not None
    await server.peers.listen(partial(answer_peer, server.app.state.pilothouse))


def close(*servers: FakeServer) -> None:
    for server in servers:
        assert server.peers is not None
        server.peers.close()


@pytest_asyncio.fixture
async def both(config: ServerConfig, tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    servers = [start(config, tmp_path, index) for index in range(2)]
    for server in servers:
        await listen(server)
    async with connect(servers[0]) as one, connect(servers[1]) as other:
        yield Client(one), Client(other)
    close(*servers)


async def names(client: Client, path: str = VECTORS) -> set[str]:
    return {entry["id"] for entry in (await client.http.get(path)).json()["data"]}


async def test_uploads_and_deletions_are_with_all_before_they_are_answered(both: tuple[Client, Client]) -> None:
    one, other = both
    uploaded = (await post(one, VECTORS, vector("new", 50))).json()
    receipt = (await other.choice(steering=[{"vector": "new"}]))["steering"][0]
    assert receipt["digest"] == uploaded["digest"]
    replaced = (await post(other, VECTORS, vector("new", 51), replace=True)).json()
    receipt = (await one.choice(steering=[{"vector": "new"}]))["steering"][0]
    assert receipt["digest"] == replaced["digest"] != uploaded["digest"]
    # What one refuses, the other refuses: they have one mind about a name.
    assert_refused(await post(one, VECTORS, vector("new", 52)), None, 409)
    assert (await one.http.delete(f"{VECTORS}/new", headers=HEADERS)).status_code == 200
    assert_refused(await other.chat(steering=[{"vector": "new"}]), "steering[0].vector")
    assert (await other.http.delete(f"{VECTORS}/honest", headers=HEADERS)).status_code == 200
    assert await names(one) == await names(other) == {"calm"}


async def test_an_sae_is_with_all(both: tuple[Client, Client]) -> None:
    one, other = both
    assert (await post(one, SAES, sae())).status_code == 200
    assert "sent" in await names(other, SAES)


async def test_changes_made_at_the_same_time_at_different_servers_all_happen(both: tuple[Client, Client]) -> None:
    sent = [post(both[i % 2], VECTORS, vector(f"v{i}", i)) for i in range(8)]
    assert [answer.status_code for answer in await asyncio.gather(*sent)] == [200] * 8
    assert await names(both[0]) == await names(both[1]) >= {f"v{i}" for i in range(8)}


async def test_a_reload_is_everyones(both: tuple[Client, Client], tmp_path: Path) -> None:
    (tmp_path / "vectors" / "calm.safetensors").unlink()
    answer = await both[0].http.post(RELOAD, headers=HEADERS)
    assert answer.json()["vectors"]["removed"] == ["calm"]
    assert await names(both[1]) == {"honest"}


async def test_a_record_is_found_wherever_one_asks(both: tuple[Client, Client]) -> None:
    one, other = both
    for client, replaced in ((one, 0), (other, 1)):
        answer = await client.chat(probes=["risk"], user="same")
        path = f"/v1/probes/results/{answer.json()['id']}"
        for asked in both:
            record = await asked.http.get(path, headers=HEADERS)
            assert record.status_code == 200, record.text
            assert record.json()["replaced"] == replaced
    assert_refused(await one.http.get("/v1/probes/results/none", headers=HEADERS), None, 404)


async def test_nothing_changes_before_all_are_there(config: ServerConfig, tmp_path: Path) -> None:
    first = start(config, tmp_path, 0)
    await listen(first)
    async with connect(first) as http:
        refused = assert_refused(await post(Client(http), VECTORS, vector("new", 50)), None, 503)
        assert "another API server" in refused["message"]
        assert "nothing was changed" in refused["message"]
        assert await names(Client(http)) == {"honest", "calm"}
        second = start(config, tmp_path, 1)
        await listen(second)
        assert (await post(Client(http), VECTORS, vector("new", 50))).status_code == 200
        assert "new" in second.app.state.pilothouse.registry.catalogue.vectors
    close(first, second)


@contextmanager
def nobody_follows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fails(*_: object) -> None:
        raise StartupError("its disk is full")

    with monkeypatch.context() as broken:
        broken.setattr("pilothouse.api.registry.Registry.follow", fails)
        yield


async def test_one_that_cannot_follow_is_told_of_and_follows_when_it_is_sent_again(
    both: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both

    with nobody_follows(monkeypatch):
        refused = assert_refused(await post(one, VECTORS, vector("new", 50)), None, 503)
    assert "its disk is full" in refused["message"]
    assert "send it again" in refused["message"]
    assert "new" not in await names(other)
    assert (await post(one, VECTORS, vector("new", 50))).status_code == 200
    assert "new" in await names(other)


async def test_a_deletion_that_one_missed_is_everyones_when_it_is_sent_again(
    both: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both

    with nobody_follows(monkeypatch):
        refused = await one.http.delete(f"{VECTORS}/honest", headers=HEADERS)
    assert "send it again" in assert_refused(refused, None, 503)["message"]
    assert (await names(one), await names(other)) == ({"calm"}, {"calm", "honest"})
    assert_refused(await one.http.delete(f"{VECTORS}/honest", headers=HEADERS), None, 404)
    assert await names(other) == {"calm"}


async def test_what_a_refused_change_caught_up_with_is_everyones(tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    config = write_all(tmp_path, uploads=str(tmp_path / "uploads"))
    servers = [start(config, tmp_path, index) for index in range(2)]
    for server in servers:
        await listen(server)
    replica = FakeServer(config)
    async with connect(servers[0]) as one, connect(servers[1]) as other, connect(replica) as elsewhere:
        assert (await post(Client(elsewhere), VECTORS, vector("foreign", 50))).status_code == 200
        assert_refused(await one.delete(f"{VECTORS}/nothing", headers=HEADERS), None, 404)
        assert await names(Client(one)) == await names(Client(other)) == {"calm", "honest", "foreign"}
    close(*servers)


async def test_of_two_records_of_one_second_the_later_is_the_newest(both: tuple[Client, Client]) -> None:
    one, other = both
    for client in (other, one):
        answer = await client.chat(probes=["risk"], user="same", max_tokens=3 if client is one else 2)
    for asked in both:
        record = (await asked.http.get(f"/v1/probes/results/{answer.json()['id']}", headers=HEADERS)).json()
        assert record["choices"][0]["probes"]["risk"]["n_scored"] == 2


async def test_a_folder_whose_sockets_would_be_too_long_ends_the_start(tmp_path: Path) -> None:
    peers = Peers(Siblings(str(tmp_path / ("long" * 30)), 0, 2))
    with pytest.raises(StartupError, match="TMPDIR"):
        await peers.listen(partial(answer_peer, None))  # type: ignore[arg-type]


def test_a_process_knows_which_of_them_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIBLINGS_ENV, "")
    Siblings("/meeting", 1, 2).to_environment()
    assert Siblings.from_environment() == Siblings("/meeting", 1, 2)
    monkeypatch.delenv(SIBLINGS_ENV)
    assert Siblings.from_environment() is None
