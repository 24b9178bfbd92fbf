"""What requests brought along or picked out of an SAE, kept so that each is decoded and hashed once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ContentCache(Generic[T]):
    """Least recently used things up to `max_bytes`, as `size` counts them.

    For the event loop's thread, and for those in which a changed registry is tried.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._bytes = 0
        self._entries: OrderedDict[bytes, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes, make: Callable[[], T]) -> T:
        """What is under `key`, made on first use; what `make` raises passes through."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        made = make()
        with self._lock:
            if key in self._entries:
                return self._entries[key]
            self._entries[key] = made
            self._bytes += self._size(made)
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                _, old = self._entries.popitem(last=False)
                self._bytes -= self._size(old)
        return made

    def __len__(self) -> int:
        return len(self._entries)
