"""Errors as OpenAI clients expect them: one body, and a status for each kind of deliberate error."""

from typing import Any

from fastapi.responses import JSONResponse

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
}


class ConflictError(PilothouseError):
    """A registry change that contradicts what is there: HTTP 409."""


class TooLargeError(PilothouseError):
    """A request body over the limit: HTTP 413."""


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
    return 500


def error_body(error: PilothouseError) -> dict[str, Any]:
    """OpenAI's error body; `param` is the path of the offending field where there is one."""
    status = status_of(error)
    param = error.param if isinstance(error, BadRequest) else None
    return {"error": {"message": str(error), "type": _TYPES[status], "param": param, "code": status}}


def error_response(error: PilothouseError) -> JSONResponse:
    """`error` as a response."""
    status = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(error_body(error), status_code=status, headers=headers)
