"""Which trace a request belongs to, as the W3C's Trace Context writes it (https://www.w3.org/TR/trace-context/)."""

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Self

# Version 00 ends with the flags; what a later one has behind them is not for us.
_TRACEPARENT = re.compile(
    r"(?!ff|00-.{52}.)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


@dataclass(frozen=True)
class TraceContext:
    """trace_id: 32 hexadecimal digits; span_id: 16 of them, of this server's span of the request; parent_id: of the
    client's span, None where the client sent none; sampled: whether the span is to be kept."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    sampled: bool = True
    _taken: list[None] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of_request(cls, traceparent: str | None) -> Self:
        """A span under the one that the header names; a trace of its own where there is none, or one that is broken,
        as the standard has it."""
        found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
        if found is None:
            return cls(secrets.token_hex(16), secrets.token_hex(8))
        return cls(found[1], secrets.token_hex(8), found[2], bool(int(found[3], 16) & 1))

    def of_session(self) -> Self:
        """The span of one more outcome of the request: the first has the request's own, later ones spans under it."""
        if self._taken:
            return replace(self, span_id=secrets.token_hex(8), parent_id=self.span_id, _taken=[])
        self._taken.append(None)
        return self

    @property
    def traceparent(self) -> str:
        """The header for those whom this span calls."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


current_trace: ContextVar[TraceContext | None] = ContextVar("pilothouse_trace", default=None)
"""That of the HTTP request being handled."""


def session_trace() -> TraceContext | None:
    """The span of a session opened now; None outside of an HTTP request."""
    trace = current_trace.get()
    return None if trace is None else trace.of_session()
