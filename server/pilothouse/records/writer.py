"""From finished requests to the database, off the way of the requests: a thread that empties a bounded queue.

Whatever the database does, a request is answered as without it; what cannot be stored is dropped and counted.
"""

import atexit
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

from pilothouse.core.errors import StartupError
from pilothouse.core.records import RequestOutcome
from pilothouse.records.database import DatabaseError
from pilothouse.records.queue import OnChange, RecordQueue, WriterLimits
from pilothouse.records.redaction import Redaction
from pilothouse.records.rows import Row, make_row
from pilothouse.records.store import RecordStore

logger = logging.getLogger(__name__)

_TRIM_PAUSE = 0.02
"""Seconds between two steps of a deletion: others write to the database too."""


class RecordWriter:
    """An `OutcomeSink` that stores records.

    redaction: of texts; None keeps no texts; on_change: see `OnChange`.
    """

    def __init__(
        self,
        store: RecordStore,
        redaction: Redaction | None = None,
        limits: WriterLimits | None = None,
        on_change: OnChange | None = None,
    ) -> None:
        self._store = store
        self._redaction = redaction
        self._limits = limits or WriterLimits()
        self._queue = RecordQueue(self._limits, on_change)
        self._opened = False
        self._pause = self._limits.first_pause
        self._next_trim = 0.0
        self._refused_start: StartupError | None = None
        self._tried = threading.Event()
        self._reported_bad = False
        self.failing = False
        """Whether the database did not take what it was last given."""
        self._thread = threading.Thread(target=self._run, name="pilothouse-records", daemon=True)

    def start(self, patience: float = 3.0) -> None:
        """Begin to write; StartupError if the database belongs to a newer Pilothouse. One that cannot be reached is
        waited for `patience` seconds here, and tried again and again by the thread."""
        self._thread.start()
        atexit.register(self.close)
        self._tried.wait(patience)
        if self._refused_start is not None:
            self.close(0)
            raise self._refused_start

    def observe(self, outcome: RequestOutcome) -> None:
        """Have the record of a finished request written, soon; never waits for the database."""
        self._queue.put(outcome)

    def counts(self) -> Mapping[str, int]:
        """Records so far: `observed`; of these `written`, by the reason of their drop, and still `queued`."""
        return self._queue.counts()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was observed by now is written or dropped; False if it is not after `timeout` seconds,
        and at once while the database fails."""
        return self._queue.flush(0 if self.failing else timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for `timeout` seconds at most, and end; what is left, or comes later, is dropped."""
        atexit.unregister(self.close)
        self._queue.close(timeout)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._queue.abandon()

    def _run(self) -> None:
        try:
            self._begin()
            while (batch := self._queue.take(self._next_look())) is not None:
                self._write(self._rows(batch))
                if self.failing and not batch:
                    self._look()
                if time.monotonic() >= self._next_trim:
                    self._next_trim = time.monotonic() + self._trim()
        finally:
            self._store.close()

    def _begin(self) -> None:
        try:
            self._open()
        except StartupError as error:
            self._refused_start = error
        except Exception as error:  # nothing may end this thread
            self._failed(error)
        finally:
            self._tried.set()

    def _next_look(self) -> float:
        """When there is something to do though no record has come."""
        return min(self._next_trim, time.monotonic() + self._limits.longest_pause) if self.failing else self._next_trim

    def _look(self) -> None:
        """Whether the database is there again: it can be read then, whether or not anything is to be written."""
        try:
            self._open()
        except Exception as error:  # nothing may end this thread
            self._failed(error)
        else:
            self._succeeded()

    def _open(self) -> None:
        if not self._opened:
            self._store.open()
            self._opened = True

    def _rows(self, batch: Sequence[RequestOutcome]) -> list[Row]:
        """The rows of those that can be stored."""
        found = []
        for outcome in batch:
            try:
                row = make_row(outcome, self._redaction)
            except Exception as error:  # whatever one record holds, the others are written
                self._drop_bad(error)
                continue
            if row.size > self._limits.record_bytes:
                self._queue.settle("too_large", 1)
            else:
                found.append(row)
        return found

    def _write(self, rows: Sequence[Row]) -> None:
        """Store them, as often as it takes; those that the database takes by no means are parted from the others."""
        batch = secrets.token_hex(8)
        give_up = time.monotonic() + self._limits.patience
        while rows:
            try:
                self._open()
                self._store.write(rows, batch)
            except Exception as error:  # nothing may end this thread
                if _is_of_data(error):
                    self._part(rows, error)
                    return
                self._failed(error)
                time_left = self._queue.pause(self._pause)
                self._pause = min(2 * self._pause, self._limits.longest_pause)
                if time_left and time.monotonic() < give_up:
                    continue
                self._queue.settle("database" if time_left else "shutdown", len(rows))
                return
            self._succeeded()
            self._queue.settle("written", len(rows))
            return

    def _part(self, rows: Sequence[Row], error: Exception) -> None:
        if len(rows) == 1:
            self._drop_bad(error)
            return
        half = len(rows) // 2
        self._write(rows[:half])
        self._write(rows[half:])

    def _drop_bad(self, error: Exception) -> None:
        if not self._reported_bad:
            self._reported_bad = True
            # Not what it says: that may show the record.
            logger.error("A record cannot be stored (%s); further ones are counted only", type(error).__name__)
        self._queue.settle("database", 1)

    def _trim(self) -> float:
        """Delete what is too old or too much, a step; seconds until the next."""
        if self.failing or not self._opened:
            return self._limits.trim_seconds
        try:
            return _TRIM_PAUSE if self._store.trim() else self._limits.trim_seconds
        except Exception as error:  # nothing may end this thread
            logger.warning("Old records could not be deleted, which is tried again: %s", error)
            return self._limits.trim_seconds

    def _failed(self, error: Exception) -> None:
        self._opened = False
        if not self.failing:
            self.failing = True
            logger.error(
                "Records cannot be written, which is tried again; they wait, or are dropped and counted: %s", error
            )

    def _succeeded(self) -> None:
        self._pause = self._limits.first_pause
        if self.failing:
            self.failing = False
            logger.warning("Records are written to %s again", self._store.name)


def _is_of_data(error: Exception) -> bool:
    """Whether it is what was to be written that was wrong, rather than the database."""
    if isinstance(error, StartupError):
        return False
    if not isinstance(error, DatabaseError):
        return True
    cause = error.__cause__
    # What the driver was never asked could not be written in its terms.
    unasked = isinstance(cause, StatementError) and not isinstance(cause, DBAPIError)
    return unasked or isinstance(cause, DataError | IntegrityError)
