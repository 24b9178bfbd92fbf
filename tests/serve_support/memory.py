"""How much memory a server has, and a server so small that warming up fills what it bounds."""

from __future__ import annotations

import psutil

from serve_support.server import Server

SMALL = ("--max-results", "100", "--kv-cache-memory-bytes", str(32 << 20), "--max-num-batched-tokens", "64")
"""So little that warming up fills it: an untouched page of the KV cache would count as growth, and so would what stock
vLLM's kernels keep for each new size of a batch (it grew by 340 MB in its first 1,500 requests, then by nothing)."""


def resident(server: Server) -> dict[str, float]:
    """MB of private memory of each process of the server; pages that they share are counted once, by share."""
    root = psutil.Process(server.process.pid)
    return {
        f"{process.pid} {process.name()}": process.memory_full_info().pss / 1e6
        for process in (root, *root.children(recursive=True))
    }
