"""Directions that the engine core has been sent, by digest, and which of them the workers already hold.

Each client (API process) sends the content of a direction with the first request that names it and says when it forgets
it. The core passes it on to the workers once, with the first step that needs it.
"""

from collections import Counter
from collections.abc import Iterable

from pilothouse.core.messages import Payload, WireDirections


class DirectionStore:
    """Content by digest, with the clients that rely on it."""

    def __init__(self) -> None:
        self._content: dict[bytes, Payload] = {}
        self._clients: dict[bytes, set[int]] = {}
        self._pins: Counter[bytes] = Counter()
        self._with_workers: set[bytes] = set()
        self._dropped: list[bytes] = []

    def __len__(self) -> int:
        return len(self._content)

    def take(self, client: int, message: WireDirections) -> None:
        """Store what a client sent and drop what it forgets, unless another client still relies on it."""
        for digest in message.forget:
            self._clients.get(digest, set()).discard(client)
            self._drop_if_unused(digest)
        for digest, payload in message.content.items():
            self._content.setdefault(digest, payload)
            self._clients.setdefault(digest, set()).add(client)

    def pin(self, digests: Iterable[bytes]) -> None:
        """Keep these while a request that names them lives, whatever its client forgets."""
        self._pins.update(digests)

    def unpin(self, digests: Iterable[bytes]) -> None:
        """Undo one `pin`."""
        for digest in digests:
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
                self._drop_if_unused(digest)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of `digests` whose content is not here."""
        return [digest for digest in digests if digest not in self._content]

    def unsent(self, digests: Iterable[bytes]) -> dict[bytes, Payload]:
        """Content of those of `digests` that the workers do not hold yet; they do from now on."""
        new = {digest: self._content[digest] for digest in digests if digest not in self._with_workers}
        self._with_workers.update(new)
        return new

    def dropped(self) -> tuple[bytes, ...]:
        """Digests that the workers may forget, since the last call."""
        dropped, self._dropped = tuple(self._dropped), []
        return dropped

    def _drop_if_unused(self, digest: bytes) -> None:
        if digest not in self._content or self._clients[digest] or digest in self._pins:
            return
        del self._content[digest], self._clients[digest]
        if digest in self._with_workers:
            self._with_workers.discard(digest)
            self._dropped.append(digest)
