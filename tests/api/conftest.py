"""A server with every kind of artefact, and a client for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from api_support.artefacts import write_all
from api_support.client import Client, connect
from api_support.fake_engine import FakeServer


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(write_all(tmp_path))


@pytest_asyncio.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with connect(server) as http:
        yield Client(http)
