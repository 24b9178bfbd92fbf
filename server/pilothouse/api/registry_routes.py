"""The registry over HTTP: lists and cards for everybody, uploads, deletions and reloads for the administrator."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pilothouse.api.catalogue import PATHS, Kind
from pilothouse.api.errors import BusyError, TooLargeError
from pilothouse.api.guard import MAX_BODY_BYTES
from pilothouse.api.keys import require_admin
from pilothouse.api.state import ApiState, state_of
from pilothouse.core.errors import BadRequest
from pilothouse.probing import Probe
from pilothouse.steering import Vector

RELOAD = "/v1/registry/reload"
DELIVERY_SECONDS = 120
"""An upload waits in the engine's queue like any request."""


def add_registry_routes(router: APIRouter) -> None:
    """GET, POST and DELETE for every kind of artefact, and the reload of all."""
    for kind in PATHS:
        _add_kind(router, kind)
    router.add_api_route(RELOAD, reload, methods=["POST"])


async def reload(request: Request) -> dict[str, Any]:
    """Read all configured places again."""
    require_admin(request)
    return {"object": "registry.reload", **await run_in_threadpool(state_of(request).registry.reload)}


def _add_kind(router: APIRouter, kind: Kind) -> None:
    path = PATHS[kind]

    async def listing(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": state_of(request).registry.catalogue.cards(kind)}

    async def card(request: Request, name: str) -> dict[str, Any]:
        return state_of(request).registry.catalogue.card(kind, name)

    async def upload(request: Request, replace: bool = False) -> dict[str, Any]:
        require_admin(request)
        state = state_of(request)
        with state.registry.uploads.staged() as staged:
            await _receive(request, staged, _largest(kind, state))
            return await _register(state, kind, staged, replace)

    async def delete(request: Request, name: str) -> dict[str, Any]:
        require_admin(request)
        shown = await run_in_threadpool(state_of(request).registry.remove, kind, name)
        return {"id": name, "object": f"{shown['object']}.deleted", "deleted": True}

    router.add_api_route(path, listing, methods=["GET"], name=f"list_{kind}")
    router.add_api_route(path, upload, methods=["POST"], name=f"add_{kind}")
    router.add_api_route(f"{path}/{{name}}", card, methods=["GET"], name=f"get_{kind}")
    router.add_api_route(f"{path}/{{name}}", delete, methods=["DELETE"], name=f"remove_{kind}")


async def _register(state: ApiState, kind: Kind, staged: Path, replaces: bool) -> dict[str, Any]:
    """The card of an upload that has been checked, is with every worker, and is registered now."""
    registry = state.registry
    entry = await run_in_threadpool(registry.read_upload, kind, staged)
    registry.check_free(kind, entry, replaces)
    if isinstance(entry, Vector | Probe):
        # Of an SAE only the features in use are taken to the workers, with the requests that use them.
        try:
            await asyncio.wait_for(state.deliver(entry.direction), DELIVERY_SECONDS)
        except TimeoutError:
            raise BusyError(
                f"the engine did not take the upload within {DELIVERY_SECONDS} seconds: nothing is registered"
            ) from None
    return await run_in_threadpool(registry.add, kind, entry, staged, replaces)


async def _receive(request: Request, path: Path, largest: int) -> None:
    """The request's body as a file; TooLargeError as soon as that is known."""
    too_large = TooLargeError(f"an upload of this kind may have {largest} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > largest:
        raise too_large
    size = 0
    try:
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > largest:
                    raise too_large
                # Not on the event loop: the disk may be far away, and every stream would wait for it.
                await run_in_threadpool(file.write, chunk)
    except ClientDisconnect:
        raise BadRequest("the client left before the end of its upload") from None
    except OSError as error:
        raise BusyError(f"the uploads folder does not take the file: {error.strerror or error}") from None


def _largest(kind: Kind, state: ApiState) -> int:
    return state.limits.max_sae_bytes if kind == "saes" else MAX_BODY_BYTES
