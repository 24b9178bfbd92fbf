"""Errors as OpenAI clients expect them: one body, and a status for each kind of deliberate error."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from pilothouse.core.errors import ArtefactError, BadRequest, Forbidden, NotFound, PilothouseError

# The `type` strings are vLLM's own, so that clients see one style whoever refuses the request.
_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class ConflictError(PilothouseError):
    """A registry change that contradicts what is there: HTTP 409."""


class TooLargeError(PilothouseError):
    """A request body over the limit: HTTP 413."""


class BusyError(PilothouseError):
    """An administrative request that the engine, the registry, the disk or another API server could not take; nothing
    was changed, or it says what was: HTTP 503."""


def status_of(error: PilothouseError) -> int:
    """The HTTP status that tells a client about `error`."""
    match error:
        case BadRequest() | ArtefactError():
            return 400
        case Forbidden():
            return error.status
        case NotFound():
            return 404
        case ConflictError():
            return 409
        case TooLargeError():
            return 413
        case BusyError():
            return 503
    return 500


def error_body(error: PilothouseError) -> dict[str, Any]:
    """OpenAI's error body; `param` is the path of the offending field where there is one."""
    status = status_of(error)
    param = error.param if isinstance(error, BadRequest) else None
    return {"error": {"message": str(error), "type": _TYPES[status], "param": param, "code": status}}


def anthropic_error_body(error: PilothouseError) -> dict[str, Any]:
    """Anthropic's error body, which has no `param`: the message names the field, as Anthropic's own do."""
    param = error.param if isinstance(error, BadRequest) else None
    message = f"{param}: {error}" if param else str(error)
    return {"type": "error", "error": {"type": _TYPES[status_of(error)], "message": message}}


def error_response(
    error: PilothouseError, body: Callable[[PilothouseError], dict[str, Any]] = error_body
) -> JSONResponse:
    """`error` as a response."""
    status = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body(error), status_code=status, headers=headers)


class ErrorRoute(APIRoute):
    """Turns every deliberate error into its response; the one place where that happens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with that around it."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(request)
            except PilothouseError as error:
                return error_response(error)

        return handle
