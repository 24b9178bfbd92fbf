"""Gives every HTTP request its place in a trace, and tells vLLM of it, so that its spans lie under ours.

Pure ASGI, because Starlette's BaseHTTPMiddleware hides disconnects from the handlers.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from pilothouse.api.state import ATTRIBUTE
from pilothouse.core.trace import TraceContext, current_trace

_PARENT, _STATE = b"traceparent", b"tracestate"


class TraceRequests:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, an HTTP request with `current_trace` set. The headers are the client's own unless vLLM
        traces, too: it warns of any that it has no use for."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == _PARENT]
        # More than one is as good as none.
        trace = TraceContext.of_request(given[0].decode("latin-1") if len(given) == 1 else None)
        if _engine_traces(scope):
            scope = {**scope, "headers": _told(scope["headers"], trace)}
        token = current_trace.set(trace)
        try:
            await self._app(scope, receive, send)
        finally:
            current_trace.reset(token)


def _told(headers: list[tuple[bytes, bytes]], trace: TraceContext) -> list[tuple[bytes, bytes]]:
    """The headers with our span in the place of the client's. Its state is of its own trace, and goes where that is
    not gone on with."""
    replaced = (_PARENT,) if trace.parent_id is not None else (_PARENT, _STATE)
    return [*((n, v) for n, v in headers if n not in replaced), (_PARENT, trace.traceparent.encode())]


def _engine_traces(scope: Scope) -> bool:
    state = getattr(scope["app"].state, ATTRIBUTE, None) if "app" in scope else None
    return state is not None and state.engine_traces
