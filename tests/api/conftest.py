"""A server with every kind of artefact, and a client for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.api.artefacts import write_all
from tests.api.client import Client
from tests.api.fake_engine import FakeServer


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(write_all(tmp_path))


@pytest_asyncio.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with connect(server) as http:
        yield Client(http)


def connect(server: FakeServer) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(server.app)
    return httpx.AsyncClient(transport=transport, base_url="http://pilothouse")
