"""Counts that others keep and these metrics show: of the record store, the exporter of spans, the log, the sinks."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge

logger = logging.getLogger(__name__)

DROP_REASONS = ("queue_full", "database", "too_large", "shutdown")
"""Why records are dropped."""
SPAN_OUTCOMES = ("exported", "dropped")
LINE_OUTCOMES = ("written", "dropped")

Read = Callable[[], Mapping[str, int]]
"""What has been counted since the start, by a fixed word."""


@dataclass(frozen=True)
class RecordCounts:
    """Of the record store since the start, but for `queued`: now. dropped: by reason."""

    written: int = 0
    queued: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)


class Followed:
    """Reads counts of others now and then, and adds what has come to counters. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followed: list[tuple[Callable[[], None], str]] = []
        self._complained: set[str] = set()

    def follow(self, counter: Counter, read: Read, words: tuple[str, ...] = ()) -> None:
        """Add what `read` counts to `counter`, which has one label; of `words` there is a series from the start."""
        last: dict[str, int] = {}
        for word in words:
            counter.labels(word)

        def update() -> None:
            for word, count in read().items():
                counter.labels(word).inc(max(count - last.get(word, 0), 0))
                last[word] = count

        self._add(update, str(counter))

    def follow_records(
        self, written: Counter, dropped: Counter, queued: Gauge, read: Callable[[], RecordCounts]
    ) -> None:
        """The same for the three metrics of the record store."""
        last = RecordCounts()
        for reason in DROP_REASONS:
            dropped.labels(reason)

        def update() -> None:
            nonlocal last
            now = read()
            written.inc(max(now.written - last.written, 0))
            for reason, count in now.dropped.items():
                dropped.labels(reason).inc(max(count - last.dropped.get(reason, 0), 0))
            queued.set(now.queued)
            last = RecordCounts(now.written, now.queued, dict(now.dropped))

        self._add(update, str(written))

    def refresh(self) -> None:
        """Bring all up to date; what cannot be read is logged once, and tried again."""
        with self._lock:
            for update, name in self._followed:
                try:
                    update()
                except Exception:
                    if name not in self._complained:
                        self._complained.add(name)
                        logger.exception("%s cannot be brought up to date", name)

    def _add(self, update: Callable[[], None], name: str) -> None:
        with self._lock:
            self._followed.append((update, name))
