"""Who may change what is served, and who may read records."""

import secrets

from fastapi import Request
from starlette.datastructures import Headers

from pilothouse.api.state import state_of
from pilothouse.core.errors import Forbidden


def bearer(headers: Headers) -> str | None:
    """The key that a request carries."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def is_key(given: str | None, key: str | None) -> bool:
    """Whether what was given is the key; how long it takes tells nothing of the key."""
    return given is not None and key is not None and secrets.compare_digest(given.encode(), key.encode())


def require_admin(request: Request) -> None:
    """Forbidden unless the request carries the admin key (401 for a wrong one, 403 where none is configured)."""
    key = state_of(request).admin_key
    if key is None:
        raise Forbidden("this server was started without --admin-key: nothing can be changed on it", status=403)
    if not is_key(bearer(request.headers), key):
        raise Forbidden("this needs `Authorization: Bearer <admin key>`", status=401)


def require_reader(request: Request) -> None:
    """Forbidden (401) unless the request carries the admin key or the reader key; where neither is configured, anybody
    may read."""
    state = state_of(request)
    if state.admin_key is None and state.reader_key is None:
        return
    given = bearer(request.headers)
    # Both are compared, whatever the first comparison said.
    found = [is_key(given, key) for key in (state.admin_key, state.reader_key)]
    if not any(found):
        raise Forbidden("records need `Authorization: Bearer <admin or reader key>`", status=401)
