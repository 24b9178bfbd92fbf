"""Directions that requests brought along or picked out of an SAE, kept so that each is decoded and hashed once."""

from collections import OrderedDict
from collections.abc import Callable

from pilothouse.core.directions import Direction


class DirectionCache:
    """Least recently used directions up to `max_bytes` of float32 rows. For one thread: the event loop's."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Direction] = OrderedDict()

    def get(self, key: bytes, make: Callable[[], Direction]) -> Direction:
        """The direction under `key`, made on first use; what `make` raises passes through."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            return found
        made = make()
        self._entries[key] = made
        self._bytes += _size(made)
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            _, old = self._entries.popitem(last=False)
            self._bytes -= _size(old)
        return made

    def __len__(self) -> int:
        return len(self._entries)


def _size(direction: Direction) -> int:
    return sum(row.nbytes for row in direction.layers.values())
