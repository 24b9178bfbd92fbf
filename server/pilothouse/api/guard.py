"""Refuses what no handler would: our fields on routes that cannot honour them, bodies without an end, and the key of
those who may only read records anywhere else.

What is looked at are JSON bodies, forms (those of uploaded sound) and the messages of a realtime session. Pure ASGI,
because Starlette's BaseHTTPMiddleware hides disconnects from the handlers.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pilothouse.api.catalogue import PATHS
from pilothouse.api.errors import TooLargeError, anthropic_error_body, error_body, error_response
from pilothouse.api.keys import bearer, is_key
from pilothouse.api.names import reject_near_misses, used_fields
from pilothouse.api.presets import SEPARATOR
from pilothouse.api.state import ATTRIBUTE
from pilothouse.core.errors import BadRequest, Forbidden, PilothouseError

MAX_BODY_BYTES = 64 * 1024 * 1024

HONOURING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
_ANTHROPIC = ("/v1/messages",)
_ROUTES = ", ".join(sorted(HONOURING))
RESULTS = "/v1/probes/results"
"""Records; their routes look at the key themselves."""
_OWN = (*PATHS.values(), "/v1/capabilities", "/v1/registry")
_STREAMED = frozenset(PATHS.values())
"""Uploads: their route checks the key before it takes the body, which may be larger than what is held in memory."""
_GUARDED = (
    "/v1",
    "/v2",
    "/inference",
    "/invocations",
    "/cohere",
    "/generative_scoring",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
)

# A body without any of these cannot hold our fields: escapes and wide encodings could hide them.
_SUSPECT = re.compile(rb"steer|prob|vector|\\u|\x00", re.IGNORECASE)

_KEYED = ("/v1", "/v2", "/inference", "/cohere")
"""What vLLM guards with its keys."""

_BOUNDARY = re.compile(rb"""boundary="?([^";,]+)""", re.IGNORECASE)
_NAME = re.compile(rb"""\bname="?([^";\r\n]*)""", re.IGNORECASE)

_LONGEST_NAME = 4096

_POLICY = 1008
"""The code with which a websocket is closed whose client said what it may not."""


class FieldGuard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but what the reader key does not open, and POSTs that must be refused, whose bodies are
        read to the end first. A websocket's messages are looked at as they come."""
        if scope["type"] in ("http", "websocket") and _exceeds_key(scope):
            await _refuse(scope, receive, send)
            return
        if scope["type"] == "websocket" and is_guarded(_path(scope)):
            await self._app(scope, _Watched(receive, send, _presets(scope)), send)
            return
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope).rstrip("/") in _STREAMED:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if body is None:
                return
            if is_guarded(_path(scope)):
                kind = dict(scope["headers"]).get(b"content-type", b"")
                if b"form" in kind.lower():
                    check_form(form_fields(body, kind), _presets(scope))
                else:
                    check_body(body, _presets(scope))
        except PilothouseError as error:
            body_of = anthropic_error_body if _under(_path(scope), _ANTHROPIC) else error_body
            await error_response(error, body_of)(scope, receive, send)
            return
        await self._app(scope, _Replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None when the client has gone; TooLargeError as soon as that is known."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"a request body may have {self._max_body_bytes} bytes")


class _Replay:
    """`receive` for the application: the body that was read, then whatever the client does next."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Watched:
    """`receive` of a websocket: a message that asks for what cannot be honoured is answered, and ends the session."""

    def __init__(self, receive: Receive, send: Send, presets: tuple[str, ...]) -> None:
        self._receive = receive
        self._send = send
        self._presets = presets

    async def __call__(self) -> Message:
        message = await self._receive()
        text = message.get("text") or message.get("bytes") or b""
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        try:
            check_body(raw, self._presets)
            check_body(raw, self._presets, inside="session")
            return message
        except BadRequest as error:
            await self._send({"type": "websocket.send", "text": json.dumps({"type": "error", **error_body(error)})})
            await self._send({"type": "websocket.close", "code": _POLICY, "reason": ""})
            return {"type": "websocket.disconnect", "code": _POLICY}


def is_guarded(path: str) -> bool:
    """True for routes that generate or score but know nothing of steering and probes."""
    bare = path.rstrip("/")
    if bare in HONOURING or _under(bare, _OWN):
        return False
    return _under(bare, _GUARDED)


def check_body(body: bytes, presets: Iterable[str] = (), inside: str | None = None) -> None:
    """BadRequest when a JSON body has one of our fields, or what looks like one, at its top level, or asks for a model
    with one of these presets. inside: the same of the object that a top-level field holds."""
    if not _SUSPECT.search(body) and not any(name.encode() in body for name in presets):
        return
    try:
        fields: Any = json.loads(body)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError:
        return  # whatever it is, the route will say so itself
    if inside is not None:
        fields = fields.get(inside) if isinstance(fields, dict) else None
    if not isinstance(fields, dict):
        return
    _refuse_fields(fields)
    _refuse_preset(str(fields.get("model", "")), presets)


def check_form(fields: Iterable[tuple[str, str]], presets: Iterable[str] = ()) -> None:
    """As `check_body`, of a form. Clients write what a field holds as fields of their own: `steering[0][vector]`."""
    for name, value in fields:
        bare = name.partition("[")[0]
        _refuse_fields({bare: value})
        if bare == "model":
            _refuse_preset(value, presets)


def form_fields(body: bytes, content_type: bytes) -> list[tuple[str, str]]:
    """Names and values of a form, files among them, each value cut to a length that any model's name has."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    found = []
    for part in body.split(b"--" + boundary[1])[1:]:
        head, _, value = part.partition(b"\r\n\r\n")
        if name := _NAME.search(head):
            short = value[:_LONGEST_NAME].partition(b"\r\n")[0]
            found.append((unquote(name[1].decode("utf-8", "replace")), short.decode("utf-8", "replace")))
    return found


def _refuse_fields(fields: Mapping[str, Any]) -> None:
    if used := used_fields(fields):
        raise BadRequest(f"this endpoint cannot honour {used[0]!r}; {_ROUTES} can", param=used[0])
    reject_near_misses(fields)


def _refuse_preset(model: str, presets: Iterable[str]) -> None:
    _, colon, preset = model.rpartition(SEPARATOR)
    if colon and preset in presets:
        raise BadRequest(f"this endpoint cannot honour the preset {preset!r}; {_ROUTES} can", param="model")


def _exceeds_key(scope: Scope) -> bool:
    """Whether the key that reads records is used for something else that vLLM keeps behind its keys, of which it is one
    wherever there are any."""
    path = _path(scope)
    # As vLLM tells what it guards: by the beginning of the path, whatever follows.
    if not path.startswith(_KEYED) or _under(path, (RESULTS,)):
        return False
    state = getattr(scope["app"].state, ATTRIBUTE, None) if "app" in scope else None
    return state is not None and is_key(bearer(Headers(scope=scope)), state.reader_key)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY, "reason": ""})
        return
    refusal = Forbidden("this key reads records, and nothing else", status=401)
    body_of = anthropic_error_body if _under(_path(scope), _ANTHROPIC) else error_body
    await error_response(refusal, body_of)(scope, receive, send)


def _presets(scope: Scope) -> tuple[str, ...]:
    state = getattr(scope["app"].state, ATTRIBUTE, None) if "app" in scope else None
    return state.presets if state is not None else ()


def _under(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def _path(scope: Scope) -> str:
    """The path behind the application's root."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path
