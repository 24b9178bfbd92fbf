"""One line of JSON for each finished request, for whoever reads logs; never what was asked or answered."""

import json
import os
import threading
from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pilothouse.core.errors import StartupError
from pilothouse.core.records import NO_TOKEN_IDS, RequestOutcome
from pilothouse.telemetry.losses import Losses

STANDARD_ERROR = "-"

_MAX_BYTES = 16 * 1024 * 1024
_STANDARD_ERROR = 2


def check_log(path: str | None) -> None:
    """StartupError where the folder of the log is not there, or the log is a folder."""
    if path is None or path == STANDARD_ERROR:
        return
    if not Path(path).absolute().parent.is_dir():
        raise StartupError(f"--request-log {path}: there is no such folder")
    if Path(path).is_dir():
        raise StartupError(f"--request-log {path}: it is a folder")


class LogLines:
    """An `OutcomeSink`: lines are written by a thread of its own, each in one piece at the end of the file, so that
    several processes may share it. A file that was renamed or deleted is begun anew.

    path: `-` for the standard error stream; max_bytes: of lines that wait. What cannot be written, or cannot wait, is
    dropped and counted. StartupError where the file cannot be opened to begin with.
    """

    def __init__(self, path: str, max_bytes: int = _MAX_BYTES) -> None:
        check_log(path)
        self._file = _File(path)
        try:
            self._file.open()
        except OSError as error:
            raise StartupError(f"--request-log {path}: {error.strerror}") from None
        self._max_bytes = max_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._written = self._dropped = self._writing = 0
        self._closed = self._given_up = False
        self._changed = threading.Condition()
        self._losses = Losses("lines of the request log")
        self._thread = threading.Thread(target=self._work, name="pilothouse-request-log", daemon=True)
        self._thread.start()

    def observe(self, outcome: RequestOutcome) -> None:
        """Have the request's line written, soon."""
        line = json.dumps(_described(outcome), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._changed:
            fits = not self._closed and self._waiting_bytes + len(line) <= self._max_bytes
            if fits:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._changed.notify()
            else:
                self._dropped += 1
        if not fits:
            self._losses.tell(self._dropped, "too much waits to be written")

    def counts(self) -> dict[str, int]:
        """Lines `written` and `dropped` so far; those that wait are neither."""
        with self._changed:
            return {"written": self._written, "dropped": self._dropped}

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for as many seconds; the rest is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._given_up = True
            self._dropped += len(self._waiting) + self._writing
            self._writing = 0
            self._waiting.clear()

    def _work(self) -> None:
        while (line := self._next()) is not None:
            why = self._file.append(line)
            with self._changed:
                if self._given_up:
                    return
                self._writing = 0
                if why is None:
                    self._written += 1
                else:
                    self._dropped += 1
            if why is not None:
                self._losses.tell(self._dropped, why)
        self._file.close()

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self._writing = 1
            return line


class _File:
    """The end of a file, or the standard error stream."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = _STANDARD_ERROR if path == STANDARD_ERROR else None
        self._torn = False

    def append(self, line: bytes) -> str | None:
        """Write the line; why not, if it could not be written whole."""
        try:
            descriptor = self.open()
            # The end of a torn line, so that this one is not lost with it.
            rest = b"\n" + line if self._torn else line
            while rest:
                done = os.write(descriptor, rest)
                self._torn = done < len(rest)
                rest = rest[done:]
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        return None

    def open(self) -> int:
        """The descriptor of what is at the path now; OSError."""
        if self._descriptor is not None and (self._path == STANDARD_ERROR or self._is_there(self._descriptor)):
            return self._descriptor
        self.close()
        self._torn = False
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self._descriptor

    def close(self) -> None:
        """Leave the file to others."""
        if self._path != STANDARD_ERROR and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return False


def _described(outcome: RequestOutcome) -> dict[str, Any]:
    trace = outcome.trace
    ended = datetime.fromtimestamp(outcome.created + outcome.seconds, UTC)
    return {
        "time": ended.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": "info" if outcome.error in (None, NO_TOKEN_IDS) else "error",
        "message": "request",
        "response_id": outcome.response_id,
        "trace_id": trace and trace.trace_id,
        "span_id": trace and trace.span_id,
        "model": outcome.model_name,
        "route": outcome.route,
        "steering": outcome.steering,
        "vectors": outcome.steered_by,
        "plan_digests": outcome.plan_digests,
        "flagged": outcome.flagged,
        "probes": _probes(outcome),
        "prompt_tokens": outcome.n_prompt,
        "generated_tokens": sum(choice.n_generated for choice in outcome.choices),
        "edited_tokens": _edited(outcome),
        "created": outcome.created,
        "seconds": round(outcome.seconds, 6),
        "error": outcome.error,
    }


def _probes(outcome: RequestOutcome) -> list[dict[str, Any]]:
    """A list, not names to values: probes that a request brings along share one name."""
    return [
        {
            "choice": index,
            "probe": probe.probe,
            "score": probe.score,
            "flagged": probe.flagged,
            "level": probe.level,
            "reason": probe.reason,
        }
        for index, choice in enumerate(outcome.choices)
        for probe in choice.probes
    ]


def _edited(outcome: RequestOutcome) -> dict[str, int]:
    total: Counter[str] = Counter()
    for choice in outcome.choices:
        total.update(choice.tokens_edited)
    return dict(total)
