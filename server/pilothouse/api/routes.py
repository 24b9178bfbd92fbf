"""The routes beside OpenAI's: registries, capabilities, records."""

import secrets
from collections.abc import Callable, Coroutine
from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from pilothouse.api.errors import error_response
from pilothouse.api.fields import Unit, operations
from pilothouse.api.guard import MAX_BODY_BYTES
from pilothouse.api.registry import Kind
from pilothouse.api.state import ApiState, state_of
from pilothouse.core.edits import NamedPositions
from pilothouse.core.errors import Forbidden, PilothouseError
from pilothouse.core.sites import SITE

PATHS: dict[Kind, str] = {"vectors": "/v1/steering_vectors", "probes": "/v1/probes", "saes": "/v1/saes"}
CAPABILITIES = "/v1/capabilities"
RESULTS = "/v1/probes/results/{response_id}"


class _Route(APIRoute):
    """Turns every deliberate error into its response; the one place where that happens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(request)
            except PilothouseError as error:
                return error_response(error)

        return handle


def make_router() -> APIRouter:
    """All routes of Pilothouse's own."""
    router = APIRouter(route_class=_Route)
    router.add_api_route(CAPABILITIES, capabilities, methods=["GET"])
    router.add_api_route(RESULTS, result, methods=["GET"])
    for kind in PATHS:
        _add_registry(router, kind)
    return router


async def capabilities(request: Request) -> dict[str, Any]:
    """What this server can do, and how much of it at once."""
    state = state_of(request)
    shape, catalogue = state.registry.shape, state.registry.catalogue
    return {
        "object": "capabilities",
        "model": shape.model,
        "d_model": shape.d_model,
        "n_layers": shape.n_layers,
        "site": SITE,
        "sites": list(shape.sites),
        "operations": list(operations(state.layout)),
        "units": list(get_args(Unit)),
        "positions": [*get_args(NamedPositions), {"from": "int", "to": "int"}],
        "limits": _limits(state),
        "steering_vectors": sorted(catalogue.vectors),
        "probes": sorted(catalogue.probes),
        "saes": sorted(catalogue.saes),
        "default_probes": list(catalogue.default_probes),
        "presets": list(state.presets),
        "self_test": state.self_test,
    }


def _limits(state: ApiState) -> dict[str, int]:
    return {
        "max_edits": state.limits.max_edits,
        "max_inline_bytes": state.limits.max_inline_bytes,
        "max_body_bytes": MAX_BODY_BYTES,
        "slots": state.layout.slots,
        "rows_per_slot": state.layout.rows_per_slot,
        "chains": state.layout.chains if state.layout.chain_steps else 0,
        "chain_steps": state.layout.chain_steps,
        "readouts": state.layout.readouts,
        "max_results": state.results.max_records,
    }


async def result(request: Request, response_id: str) -> Response:
    """The record of one response."""
    state = state_of(request)
    if state.admin_key is not None:
        require_admin(request)
    return Response(state.results.read(response_id), media_type="application/json")


def require_admin(request: Request) -> None:
    """Forbidden unless the request carries the admin key (401 for a wrong one, 403 where none is configured)."""
    key = state_of(request).admin_key
    if key is None:
        raise Forbidden("this server was started without --admin-key: nothing can be changed on it", status=403)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), key.encode()):
        raise Forbidden("this needs `Authorization: Bearer <admin key>`", status=401)


def _add_registry(router: APIRouter, kind: Kind) -> None:
    path = PATHS[kind]

    async def listing(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": state_of(request).registry.cards(kind)}

    async def card(request: Request, name: str) -> dict[str, Any]:
        return state_of(request).registry.card(kind, name)

    async def upload(request: Request) -> dict[str, Any]:
        require_admin(request)
        return await run_in_threadpool(state_of(request).registry.add, kind, await request.body())

    async def delete(request: Request, name: str) -> dict[str, Any]:
        require_admin(request)
        registry = state_of(request).registry
        shown = registry.card(kind, name)
        await run_in_threadpool(registry.remove, kind, name)
        return {"id": name, "object": f"{shown['object']}.deleted", "deleted": True}

    router.add_api_route(path, listing, methods=["GET"], name=f"list_{kind}")
    router.add_api_route(path, upload, methods=["POST"], name=f"add_{kind}")
    router.add_api_route(f"{path}/{{name}}", card, methods=["GET"], name=f"get_{kind}")
    router.add_api_route(f"{path}/{{name}}", delete, methods=["DELETE"], name=f"remove_{kind}")
