"""Fifteen thousand requests of all kinds: what they leave in the memory of all processes of the server together is
nothing that adds up, and metrics, records and log lines say the same of them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from serve_support.agreement import agreed
from serve_support.memory import SMALL, resident
from serve_support.mixed import KINDS, send
from serve_support.server import serving

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]

WARM_UP = 9000
"""Requests until what is bounded is full: records, kept scores, and what kernels and allocators keep for themselves."""
REQUESTS = 6000
MOST_PER_THOUSAND = 1.0
"""MB of growth that 1,000 requests may leave."""


def test_many_requests_leave_no_memory_behind_and_are_counted_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(11)
    with serving(tmp_path, *SMALL, "--request-log", str(tmp_path / "requests.jsonl")) as server:
        asyncio.run(send(server, WARM_UP, rng))
        before = resident(server)
        done = asyncio.run(send(server, REQUESTS, rng))
        after = resident(server)
        counted = agreed(server, tmp_path)
    grown = {name: after[name] - before[name] for name in before}
    per_thousand = sum(grown.values()) * 1000 / REQUESTS
    with capsys.disabled():
        print(f"\n{dict(done)}: {per_thousand:+.2f} MB per 1,000 requests; {grown}")
    assert set(after) == set(before)
    assert set(done) == {kind.__name__ for kind in KINDS}
    assert per_thousand <= MOST_PER_THOUSAND
    # All but the plain and the refused ones.
    assert sum(n for (name, *_), n in counted.items() if name == "pilothouse_requests_total") > 10_000
