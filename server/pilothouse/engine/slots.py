"""Places in the engine's fixed-size tables, given out by content.

One table gives out rows of edits, one chains, one the columns of readouts. Requests that need the same content share
a place; a place that nobody holds keeps its content until it is needed for something else (least recently used first).
"""

from collections import OrderedDict
from collections.abc import Collection


class SlotTable:
    """`capacity` places, each free, idle (loaded, held by nobody) or held by one or more requests."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._place: dict[bytes, int] = {}
        self._holders: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._free = list(range(capacity - 1, -1, -1))
        self._loaded: set[bytes] = set()

    def can_acquire(self, keys: Collection[bytes]) -> bool:
        """Whether all of `keys` can be held at once beside what others hold."""
        wanted = set(keys)
        new = sum(key not in self._place for key in wanted)
        spare = len(self._free) + sum(key not in wanted for key in self._idle)
        return new <= spare

    def places(self, keys: Collection[bytes]) -> list[int] | None:
        """The places of `keys` where each has one already, held or idle; else None. `acquire` would give the same."""
        return [self._place[key] for key in keys] if all(key in self._place for key in keys) else None

    def acquire(self, keys: Collection[bytes]) -> list[int]:
        """Hold a place for each key, in order. Call only after `can_acquire`."""
        distinct = dict.fromkeys(keys)
        for key in distinct:
            if key in self._place:
                self._hold(key)
        for key in distinct:
            if key not in self._place:
                self._place[key] = self._take_place()
                self._hold(key)
        return [self._place[key] for key in keys]

    def release(self, keys: Collection[bytes]) -> None:
        """Undo one `acquire` of the same keys."""
        for key in dict.fromkeys(keys):
            self._holders[key] -= 1
            if self._holders[key] == 0:
                del self._holders[key]
                if key in self._loaded:
                    self._idle[key] = None
                else:
                    self._free.append(self._place.pop(key))

    def mark_loaded(self, key: bytes) -> bool:
        """Note that the content of a held key is in the engine now; False when it already was."""
        if key in self._loaded:
            return False
        self._loaded.add(key)
        return True

    @property
    def held(self) -> int:
        """Places held by at least one request."""
        return len(self._holders)

    def check_idle(self) -> None:
        """Raise AssertionError unless nothing is held and every place is accounted for."""
        if self._holders:
            raise AssertionError(f"{self.held} places are held by nobody")
        self.check_integrity()

    def check_integrity(self) -> None:
        """Raise AssertionError unless every place is exactly one of free, idle or held."""
        places = sorted([*self._free, *self._place.values()])
        if places != list(range(self.capacity)):
            raise AssertionError(f"places lost or given out twice: {places}")
        if set(self._place) != set(self._holders) | set(self._idle) or set(self._holders) & set(self._idle):
            raise AssertionError("a place is neither held nor idle, or both")

    def _hold(self, key: bytes) -> None:
        self._idle.pop(key, None)
        self._holders[key] = self._holders.get(key, 0) + 1

    def _take_place(self) -> int:
        if self._free:
            return self._free.pop()
        key, _ = self._idle.popitem(last=False)
        self._loaded.discard(key)
        return self._place.pop(key)
