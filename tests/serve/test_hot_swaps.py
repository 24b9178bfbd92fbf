"""Artefacts that change while they are in use, on a real server under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_support.harness import Reference
from serve_support.memory import SMALL, resident
from serve_support.server import Server, serving
from serve_support.swaps import HEADERS, NAME, PATHS, Checker, Swaps

pytestmark = pytest.mark.engine

N_SWAPS = 256
MOST_GROWTH = 2.0
"""MB that N_SWAPS more of them may leave in all processes together."""


def remove_all(server: Server) -> None:
    for path in PATHS.values():
        assert server.delete(f"{path}/{NAME}", headers=HEADERS).status_code == 200


def test_every_answer_under_load_is_that_of_the_content_it_names(
    server: Server, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    swaps = Swaps(server.url)
    asyncio.run(swaps.run(N_SWAPS))
    checker = Checker(reference, swaps.content)
    for choice in swaps.answers:
        checker.check(choice)
    seen = {choice["steering"][0]["digest"] for choice in swaps.answers}
    mixed = {
        (c["steering"][0]["digest"], c["steering"][1]["digest"], c["probes"][NAME]["version"]) for c in swaps.answers
    }
    with capsys.disabled():
        print(f"\n{N_SWAPS} swaps, {len(swaps.answers)} answers with {len(seen)} vectors in {len(mixed)} combinations")
    assert len(seen) > 30, "most contents were replaced before anybody used them: the test shows little"
    assert len(mixed) > len(seen)
    assert any(edit["tokens_from_cache"] for c in swaps.answers for edit in c["steering"]), "no cached block was met"
    remove_all(server)
    metrics = server.get("/metrics").text
    assert not [line for line in metrics.splitlines() if line.startswith("pilothouse_engine_gaps_total{")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hot_swaps_leave_no_memory_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, *SMALL) as server:
        swaps = Swaps(server.url)
        sizes = []
        for _ in range(8):
            asyncio.run(swaps.run(N_SWAPS))
            swaps.answers.clear()
            sizes.append(sum(resident(server).values()))
        remove_all(server)
    with capsys.disabled():
        print(f"\nMB after each {N_SWAPS} hot swaps: {[round(size, 1) for size in sizes]}")
    assert (sizes[-1] - sizes[-4]) / 3 <= MOST_GROWTH
