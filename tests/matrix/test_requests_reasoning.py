"""Requests whose answers a reasoning parser takes apart, on a server of their own: it goes before any tool parser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_support.harness import Reference
from matrix_support.columns import Columns
from matrix_support.expected import Oracle
from matrix_support.flagged_kinds import REASONING_FLAGS, REASONING_KINDS
from matrix_support.requests import Sent, send
from serve_support.server import Server, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("reasoning"), *REASONING_FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def oracle(reasoning: Server, reference: Reference) -> Oracle:
    return Oracle(reasoning, reference)


@pytest.fixture(scope="module", params=list(REASONING_KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def sent(reasoning: Server, kind: str) -> Sent:
    return send(reasoning, REASONING_KINDS[kind])


class TestKinds(Columns):
    """Every column of the kinds."""
