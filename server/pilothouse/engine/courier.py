"""What this process has sent to its engines, so that a direction's content travels once and is forgotten in time."""

from collections import OrderedDict
from collections.abc import Iterable

from pilothouse.core.directions import Direction
from pilothouse.core.messages import Payload, WireDirections


class Holder:
    """Knows which directions belong to requests that are not over, by digest."""

    def __init__(self) -> None:
        self.live: dict[bytes, int] = {}

    def hold(self, directions: list[Direction]) -> None:
        """These directions belong to a request that is not over."""
        for direction in directions:
            self.live[direction.digest] = self.live.get(direction.digest, 0) + 1

    def drop(self, directions: list[Direction]) -> None:
        """Undo one `hold`."""
        for direction in directions:
            self.live[direction.digest] -= 1
            if not self.live[direction.digest]:
                del self.live[direction.digest]


class Courier(Holder):
    """Knows what this client has sent to one engine, and when it may be forgotten.

    live: what the requests of all engines hold, where there are several; what is held is sent, or will be.
    """

    def __init__(self, max_bytes: int, live: dict[bytes, int] | None = None) -> None:
        super().__init__()
        if live is not None:
            self.live = live
        self._max_bytes = max_bytes
        self._sent: OrderedDict[bytes, int] = OrderedDict()
        self._forgotten: list[bytes] = []
        self._bytes = 0

    def parcel(self, directions: list[Direction]) -> WireDirections | None:
        """What to send along with a request that needs `directions`; None when the engine has it all.

        Until `arrived` every request that needs the same content carries it too, so none relies on another's parcel.
        """
        for direction in directions:
            if direction.digest in self._sent:
                self._sent.move_to_end(direction.digest)
        content = {d.digest: d.payload for d in directions if d.digest not in self._sent}
        if not content:
            return None
        self._evict(sum(_size(payload) for payload in content.values()))
        forgotten, self._forgotten = tuple(self._forgotten), []
        return WireDirections(content, forgotten)

    def arrived(self, parcel: WireDirections) -> None:
        """The parcel is on its way, in order: later requests need not carry its content."""
        for digest, payload in parcel.content.items():
            if digest not in self._sent:
                self._sent[digest] = _size(payload)
                self._bytes += self._sent[digest]

    def returned(self, parcel: WireDirections) -> None:
        """The parcel was not sent: what it would have had forgotten goes with the next one."""
        self._forgotten.extend(parcel.forget)

    def lost(self, digests: Iterable[bytes]) -> None:
        """The engine may not have these after all: they will be sent again."""
        for digest in digests:
            self._bytes -= self._sent.pop(digest, 0)

    def _evict(self, coming: int) -> None:
        for digest in list(self._sent):
            if self._bytes + coming <= self._max_bytes:
                break
            if digest not in self.live:
                self._bytes -= self._sent.pop(digest)
                self._forgotten.append(digest)


class Couriers(Holder):
    """A courier for each engine of this client, for each has a store of its own: what one has, another may lack."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._by_engine: dict[bytes, Courier] = {}

    def to(self, engine: bytes) -> Courier:
        """The courier to the engine of this identity."""
        if engine not in self._by_engine:
            self._by_engine[engine] = Courier(self._max_bytes, self.live)
        return self._by_engine[engine]

    def lost(self, digests: Iterable[bytes]) -> None:
        """An engine may not have these after all: whichever it is, they will be sent again."""
        lost = list(digests)
        for courier in self._by_engine.values():
            courier.lost(lost)


def _size(payload: Payload) -> int:
    return sum(map(len, payload.values()))
