"""Readouts of prompt positions that the prefix cache will not forward again, kept beside the cached blocks.

A request that asks for prompt scores may take from the prefix cache only what it can also take from here; the rest is
forwarded again. Scores are keyed like the blocks themselves (vLLM's block hash, which stands for the tokens so far and
for every edit on them) plus the digest of the probe's direction, so they are right wherever the block is. How long they
stay does not depend on the block: a score without its block is not used, and a block without its scores is computed
again. vLLM keeps routed experts in the same way (its auxiliary-output connector).
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from pilothouse.core.sites import Float32

MAX_BYTES = 64 << 20
ENTRY_OVERHEAD = 400
"""Bytes that Python needs for an entry beside its scores: key, digest, array and table."""

Key = tuple[bytes, bytes]


class ScoreStore:
    """Scores [block_size] float32 by block hash and probe digest; least recently used ones go first."""

    def __init__(self, block_size: int, max_bytes: int = MAX_BYTES) -> None:
        self.block_size = block_size
        self._most = max(max_bytes // (4 * block_size + ENTRY_OVERHEAD), 1)
        self._scores: OrderedDict[Key, Float32] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def covered(self, block_hashes: Sequence[bytes], probes: Sequence[bytes]) -> int:
        """How many leading blocks have the scores of all `probes`."""
        known = (all((block, probe) in self._scores for probe in probes) for block in block_hashes)
        return sum(1 for _ in takewhile(bool, known))

    def take(self, block_hashes: Sequence[bytes], probes: Sequence[bytes]) -> Float32:
        """Scores [len(block_hashes) * block_size, len(probes)]; every block must be covered."""
        table = np.empty((len(block_hashes) * self.block_size, len(probes)), dtype=np.float32)
        for b, block in enumerate(block_hashes):
            for k, probe in enumerate(probes):
                self._scores.move_to_end((block, probe))
                table[b * self.block_size : (b + 1) * self.block_size, k] = self._scores[block, probe]
        return table

    def put(self, block: bytes, probes: Sequence[bytes], rows: Float32) -> None:
        """Keep the rows [block_size, len(probes)] of one block."""
        for k, probe in enumerate(probes):
            self._scores[block, probe] = rows[:, k].copy()
            self._scores.move_to_end((block, probe))
        while len(self._scores) > self._most:
            self._scores.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: the weights or the cache were reset."""
        self._scores.clear()


class BlockCollector:
    """Collects one request's rows, step by step, into whole blocks."""

    def __init__(self, store: ScoreStore, probes: Sequence[bytes]) -> None:
        self._store = store
        self._probes = probes
        self._start = 0
        self._rows: list[Float32] = []
        self._count = 0

    def add(self, start: int, rows: Float32, block_hashes: Sequence[bytes]) -> None:
        """Take in the rows [n, probes] of positions [start, start + n), and store the blocks that are whole by now.

        block_hashes: the request's, as far as its tokens are known. A start that does not follow on (recomputation
        after preemption) begins anew: what was forwarded before may have been forwarded for other tokens.
        """
        if start != self._start + self._count:
            self._start, self._rows, self._count = start, [], 0
        self._rows.append(rows)
        self._count += len(rows)
        size = self._store.block_size
        first = -(-self._start // size)
        last = min((self._start + self._count) // size, len(block_hashes))
        if last <= first:
            return
        table = np.concatenate(self._rows)
        for block in range(first, last):
            offset = block * size - self._start
            self._store.put(block_hashes[block], self._probes, table[offset : offset + size])
        rest = table[last * size - self._start :]
        self._start, self._rows, self._count = last * size, [rest], len(rest)
