"""Which cores servers and their client run on, so that nobody stands in the workers' way.

vLLM binds a CPU worker to cores of its own, but nothing keeps the others off these: on a machine of few cores a step
that is displaced takes five to eight times as long, for seconds at a time, and hides all that is to be measured.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WORKER = "VLLM::Worker"


@contextmanager
def off_the_workers(servers: Iterable[int]) -> Iterator[set[int]]:
    """Confine this process, and all processes of the servers but their workers, to the cores that no worker is bound
    to, for as long as the block runs; these cores, none where workers are bound to no cores or to all.

    servers: the id of each one's first process.
    """
    # Not a dependency of ours: where there is an engine to be measured, it has brought this along.
    import psutil

    trees = [(psutil.Process(pid), *psutil.Process(pid).children(recursive=True)) for pid in servers]
    everyone = {process.pid for tree in trees for process in tree}
    workers = {pid for pid in everyone if _title(pid).startswith(WORKER)}
    before = os.sched_getaffinity(0)
    around = before.difference(*(os.sched_getaffinity(pid) for pid in workers))
    if not workers or not around:
        yield set()
        return
    for pid in (os.getpid(), *(everyone - workers)):
        _confine(pid, around)
    try:
        yield around
    finally:
        # Servers that this process starts later must find the workers' cores again.
        _confine(os.getpid(), before)


def _confine(pid: int, cores: set[int]) -> None:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            # Threads come and go; new ones inherit.
            with suppress(OSError):
                os.sched_setaffinity(int(task.name), cores)


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    return ""
