"""What waits to be written: bounded, and counted to the last record.

Every record that was observed is queued, written, or dropped for one reason.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from pilothouse.core.records import RequestOutcome
from pilothouse.records.weight import weight

logger = logging.getLogger(__name__)

Drop = Literal["queue_full", "database", "too_large", "shutdown"]
"""Why a record was not written: more was waiting than may; the database did not take it, for as long as it was tried,
or it alone; it is larger than a record may be; the server ended first."""

End = Literal["written"] | Drop

OnChange = Callable[[End, int], None]
"""Told of how many records were written, or dropped and why, as it happens, on whatever thread."""

_LONGEST_WAIT = 3600.0


@dataclass(frozen=True)
class WriterLimits:
    """queue_records, queue_bytes: what may wait; record_bytes: of the largest record; batch_records, batch_bytes: what
    is written at once; interval: seconds that a record waits for others at most; patience: seconds for which a batch is
    tried, over and over, before it is dropped; first_pause, longest_pause: seconds between two attempts; trim_seconds:
    how often it is looked for what is too old or too much."""

    queue_records: int = 10_000
    queue_bytes: int = 32 * 1024 * 1024
    record_bytes: int = 16 * 1024 * 1024
    batch_records: int = 500
    batch_bytes: int = 8 * 1024 * 1024
    interval: float = 0.25
    patience: float = 60.0
    first_pause: float = 0.1
    longest_pause: float = 5.0
    trim_seconds: float = 60.0


class _Waiting(NamedTuple):
    outcome: RequestOutcome
    weight: int
    since: float


class RecordQueue:
    """Between the threads that serve and the one that writes. on_change: see `OnChange`."""

    def __init__(self, limits: WriterLimits, on_change: OnChange | None = None) -> None:
        self._limits = limits
        self._on_change = on_change
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._accepted = 0
        self._settled = 0
        self._wanted = 0
        self._counts = dict.fromkeys(("observed", "written", *get_args(Drop)), 0)
        self._idle = False
        self._closing = False
        self._over = False
        self._deadline = float("inf")

    def put(self, outcome: RequestOutcome) -> None:
        """Let it wait, or drop it; never blocks for longer than a batch is picked up."""
        item = _Waiting(outcome, weight(outcome), time.monotonic())
        with self._changed:
            self._counts["observed"] += 1
            drop = self._refusal(item.weight)
            if drop is None:
                self._accepted += 1
                self._waiting.append(item)
                self._bytes += item.weight
                # Otherwise the writer wakes by itself when the batch is due.
                if self._idle or len(self._waiting) == self._limits.batch_records:
                    self._changed.notify_all()
                return
            self._counts[drop] += 1
        self._tell(drop, 1)

    def take(self, until: float) -> list[RequestOutcome] | None:
        """The next batch, once it is full, wanted, or old enough; nothing at the time `until` of the monotonic clock;
        None when the queue is closed and empty, or its time is over."""
        with self._changed:
            while not self._is_due():
                now = time.monotonic()
                if self._closing:
                    return None
                if now >= until:
                    return []
                due = min(until, self._waiting[0].since + self._limits.interval) if self._waiting else until
                self._idle = not self._waiting
                self._changed.wait(min(due - now, _LONGEST_WAIT))
                self._idle = False
            if self._over:
                return None
            return self._pick()

    def settle(self, end: End, n: int) -> None:
        """Say what became of `n` records that were taken."""
        with self._changed:
            if self._over or not n:
                return
            self._settle(end, n)
        self._tell(end, n)

    def pause(self, seconds: float) -> bool:
        """Wait, not beyond the time that is left once the queue is closed; whether there is any left."""
        with self._changed:
            was = self._closing
            left = min(seconds, self._deadline - time.monotonic())
            self._changed.wait_for(lambda: self._closing != was or self._over, max(left, 0))
            return time.monotonic() < self._deadline and not self._over

    def flush(self, timeout: float) -> bool:
        """Wait until all that waits by now is written or dropped; False if it is not after `timeout` seconds."""
        with self._changed:
            wanted = self._accepted
            self._wanted = max(self._wanted, wanted)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._settled >= wanted, timeout)

    def close(self, timeout: float) -> None:
        """Take nothing in any more; what waits has `timeout` seconds to be written."""
        with self._changed:
            self._closing = True
            self._deadline = min(self._deadline, time.monotonic() + timeout)
            self._changed.notify_all()

    def abandon(self) -> None:
        """Drop what is neither written nor dropped by now; a writer that still tries counts nothing any more."""
        with self._changed:
            left = self._accepted - self._settled
            self._over = True
            self._waiting.clear()
            self._bytes = 0
            self._settle("shutdown", left)
        if left:
            self._tell("shutdown", left)

    def counts(self) -> Mapping[str, int]:
        """Records so far: `observed`; of these `written`, by the reason of their drop, and still `queued`."""
        with self._changed:
            return {**self._counts, "queued": self._accepted - self._settled}

    def _refusal(self, size: int) -> Drop | None:
        limits = self._limits
        if self._closing:
            return "shutdown"
        if size > min(limits.queue_bytes, limits.record_bytes):
            return "too_large"
        full = len(self._waiting) >= limits.queue_records or self._bytes + size > limits.queue_bytes
        return "queue_full" if full else None

    def _is_due(self) -> bool:
        if self._over:
            return True
        if not self._waiting:
            return False
        n, limits = len(self._waiting), self._limits
        full = n >= limits.batch_records or self._bytes >= limits.batch_bytes
        wanted = self._closing or self._accepted - n < self._wanted
        return full or wanted or time.monotonic() >= self._waiting[0].since + limits.interval

    def _pick(self) -> list[RequestOutcome]:
        batch: list[RequestOutcome] = []
        size = 0
        while self._waiting and len(batch) < self._limits.batch_records:
            if batch and size + self._waiting[0].weight > self._limits.batch_bytes:
                break
            item = self._waiting.popleft()
            batch.append(item.outcome)
            size += item.weight
        self._bytes -= size
        return batch

    def _settle(self, end: End, n: int) -> None:
        self._settled += n
        self._counts[end] += n
        self._changed.notify_all()

    def _tell(self, end: End, n: int) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(end, n)
        except Exception:
            logger.exception("What became of records could not be told")
