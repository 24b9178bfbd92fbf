"""Every error that Pilothouse raises on purpose, and what each one means to whoever meets it.

PilothouseError
├── BadRequest         a client asked for something that cannot be done: HTTP 400 with `param`
├── NotFound           a client named something that is not registered: HTTP 404 on the registry routes
├── Forbidden          an administrative route was called without the right key: HTTP 401 or 403
├── ArtefactError      a vector, probe or SAE file is malformed, or does not fit the served model
├── StartupError       the server cannot start as configured; the message says how to mend it
└── EngineGap          the engine did not do what the plan said; the request that it happened to fails
"""


class PilothouseError(Exception):
    """Base of all deliberate errors; `str(error)` is one clear sentence for the reader."""


class BadRequest(PilothouseError, ValueError):
    """A malformed or impossible request. A ValueError too: vLLM answers those with 400 on every route of its own.

    `param` is the path of the offending field as the client wrote it, for example ``steering[0].vector``.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFound(PilothouseError):
    """A registry entry that does not exist."""


class Forbidden(PilothouseError):
    """An administrative call without a valid key; `status` is 401 (wrong key) or 403 (no key configured)."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.status = status


class ArtefactError(PilothouseError):
    """A file that cannot be used as the vector, probe or SAE it claims to be."""


class StartupError(PilothouseError):
    """A configuration that cannot work; raised before the first request is accepted."""


class EngineGap(PilothouseError):
    """Tokens that should have been edited or scored were not."""
