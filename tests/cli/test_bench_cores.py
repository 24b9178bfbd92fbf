"""A benchmark keeps everything but the workers off the workers' cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pilothouse.cli.bench.cores import WORKER, off_the_workers

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")

SERVER = """
import os, subprocess, sys
worker = subprocess.Popen([sys.argv[1], "-c", sys.argv[2]], executable=sys.executable)
other = subprocess.Popen([sys.executable, "-c", "input()"])
print(worker.pid, other.pid, flush=True)
input()
for child in (worker, other):
    child.kill()
"""


@contextmanager
def server(bound_to: set[int]) -> Iterator[tuple[int, int, int]]:
    """Ids of a process, of its child that is called a worker and is bound to these cores, and of another child."""
    bind = f"import os; os.sched_setaffinity(0, {bound_to}); print('bound', flush=True); input()"
    command = [sys.executable, "-c", SERVER, WORKER, bind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = sorted(process.stdout.readline().split() for _ in range(2))
    try:
        yield process.pid, int(lines[0][0]), int(lines[0][1])
    finally:
        process.communicate("\n", timeout=30)


def test_everything_but_workers_leaves_their_cores_for_as_long_as_it_is_measured() -> None:
    cores = os.sched_getaffinity(0)
    last = {max(cores)}
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with ExitStack() as stack:
        servers = [stack.enter_context(server(last)) for _ in range(2)]
        with off_the_workers(first for first, _, _ in servers) as around:
            assert around == cores - last
            for first, worker, other in servers:
                assert os.sched_getaffinity(worker) == last
                assert os.sched_getaffinity(first) == os.sched_getaffinity(other) == around
            assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id or 0) == around
        assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id or 0) == cores
    done.set()


def test_workers_that_are_bound_to_no_cores_move_nobody() -> None:
    cores = os.sched_getaffinity(0)
    with server(cores) as (first, _, other), off_the_workers([first]) as around:
        assert around == set()
        assert os.sched_getaffinity(first) == os.sched_getaffinity(other) == os.sched_getaffinity(0) == cores
