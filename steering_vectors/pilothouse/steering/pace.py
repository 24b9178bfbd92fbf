"""How much to ask of a model at once, where what has been finished is kept and what has not is lost."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 15.0


class Pace:
    """The number of items in the next piece of work: pieces take about `SECONDS`, on any model.

    Ctrl-C costs the piece that runs. A large piece fills the batch of a fast model, on a slow one it would be minutes.
    """

    def __init__(self, most: int, first: int = 16, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self.size = min(first, most)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around one piece: the next one is twice the size after one that took less than half of the time, and half
        of it after one that took more than twice the time."""
        started = self._clock()
        yield
        took = self._clock() - started
        if took < SECONDS / 2:
            self.size = min(2 * self.size, self._most)
        elif took > 2 * SECONDS:
            self.size = max(self.size // 2, 1)
