"""Two ranks: what is uploaded is with both of them, and both edit, read and decide alike."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_support.harness import Reference
from serve_support.operations import check_along_a_vector, check_clamp, check_gate
from serve_support.server import serving
from serve_support.swaps import Checker, Swaps

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

N_SWAPS = 32


def test_two_ranks_answer_as_one(tmp_path: Path, reference: Reference) -> None:
    # Each rank has a core of its own: vLLM binds them by itself only where there are several memory nodes.
    ranks = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with serving(tmp_path, "--tensor-parallel-size", "2", **ranks) as server:
        for op in ("ablate", "set", "cap"):
            check_along_a_vector(server, reference, op, preserve_norm=True)
        check_clamp(server, reference, "clamp")
        for scope in ("token", "rest"):
            check_gate(server, reference, scope)
        swaps = Swaps(server.url)
        asyncio.run(swaps.run(N_SWAPS))
        checker = Checker(reference, swaps.content)
        for choice in swaps.answers:
            checker.check(choice)
        assert len(swaps.answers) > N_SWAPS // 2
