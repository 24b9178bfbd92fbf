"""How much memory a server has, and a server so small that warming up fills what it bounds."""

from __future__ import annotations

from pathlib import Path

import psutil

from serve_support.server import Server

SMALL = ("--max-results", "100", "--kv-cache-memory-bytes", str(32 << 20), "--max-num-batched-tokens", "64")
"""So little that warming up fills it: an untouched page of the KV cache would count as growth, and so would what stock
vLLM's kernels keep for each new size of a batch (it grew by 340 MB in its first 1,500 requests, then by nothing)."""


_OWN = ("Pss_Anon", "Pss_Shmem", "SwapPss")
"""What a process has asked for. Pages of files, libraries above all, are the kernel's to take back, and are shared
with processes that are none of the server's: its share of them grows by some 25 MB a process when such a one ends."""


def resident(server: Server) -> dict[str, float]:
    """MB of memory of each process of the server that no file backs; pages that they share are counted by share."""
    root = psutil.Process(server.process.pid)
    return {
        f"{process.pid} {process.name()}": _own_kilobytes(process.pid) * 1024 / 1e6
        for process in (root, *root.children(recursive=True))
    }


def _own_kilobytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size) for name, size, *_ in (line.replace(":", " ").split() for line in lines)}
    return sum(sizes[name] for name in _OWN)
