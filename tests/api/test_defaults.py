"""Default probes: on every request that does not say otherwise, by whichever route it came."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from api_support.artefacts import write_all
from api_support.client import HEADERS, Client, assert_refused, connect
from api_support.fake_engine import FakeServer

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(write_all(tmp_path, default_probes=("risk", "early")))


@pytest_asyncio.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with connect(server) as http:
        yield Client(http)


async def test_absent_means_the_defaults(client: Client) -> None:
    assert list((await client.choice())["probes"]) == ["risk", "early"]
    assert list((await client.chunks())[-1]["probes"]) == ["risk", "early"]


async def test_an_empty_list_means_none(client: Client) -> None:
    assert "probes" not in await client.choice(probes=[])
    assert "probes" not in await client.choice(probes={"names": []})


async def test_names_replace_the_defaults(client: Client) -> None:
    assert list((await client.choice(probes=["truthfulness"]))["probes"]) == ["truthfulness"]


async def test_options_without_names_are_for_the_defaults(client: Client) -> None:
    probes = (await client.choice(probes={"tokens": True}))["probes"]
    assert list(probes) == ["risk", "early"]
    assert all("tokens" in shown for shown in probes.values())


def test_other_routes_have_the_defaults(server: FakeServer) -> None:
    assert [r.label for r in server.extension.open_default("/v1/responses", "tiny").plan.readouts] == ["risk", "early"]


async def test_beams_are_not_probed_by_default(server: FakeServer) -> None:
    assert server.extension.open({"use_beam_search": True}, "", "").plan.empty
    assert not server.extension.open({"use_beam_search": False}, "", "").plan.empty


async def test_a_default_probe_cannot_be_deleted(client: Client) -> None:
    assert_refused(await client.http.delete("/v1/probes/risk", headers=HEADERS), None, 409)
    assert (await client.http.get("/v1/probes/risk")).status_code == 200


def test_more_defaults_than_columns_stop_the_start(tmp_path: Path) -> None:
    config = write_all(tmp_path, default_probes=("risk", "early"))
    with pytest.raises(StartupError, match="at most 1 probes"):
        FakeServer(config, EngineLayout(readouts=1))


def test_a_default_probe_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"'luck'.*early, risk, truthfulness"):
        FakeServer(write_all(tmp_path, default_probes=("luck",)))
