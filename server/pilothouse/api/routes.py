"""The routes beside OpenAI's: capabilities, records, and those of the registry."""

from typing import Any, get_args

from fastapi import APIRouter, Request

from pilothouse.api.console_routes import add_console_routes
from pilothouse.api.errors import ErrorRoute
from pilothouse.api.fields import Unit, operations
from pilothouse.api.guard import MAX_BODY_BYTES
from pilothouse.api.record_routes import add_record_routes
from pilothouse.api.registry_routes import add_registry_routes
from pilothouse.api.state import ApiState, closing_at_the_end, state_of
from pilothouse.core.edits import NamedPositions
from pilothouse.core.sites import SITE

CAPABILITIES = "/v1/capabilities"


def make_router() -> APIRouter:
    """All routes of Pilothouse's own."""
    router = APIRouter(route_class=ErrorRoute, lifespan=closing_at_the_end)
    router.add_api_route(CAPABILITIES, capabilities, methods=["GET"])
    # Before those of the registry, which would take `results` for a probe's name.
    add_record_routes(router)
    add_registry_routes(router)
    add_console_routes(router)
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
        "gate_scopes": _gate_scopes(state),
        "pipeline_stages": list(shape.stages),
        "units": list(get_args(Unit)),
        "positions": [*get_args(NamedPositions), {"from": "int", "to": "int"}],
        "limits": _limits(state),
        "steering_vectors": sorted(catalogue.vectors),
        "probes": sorted(catalogue.probes),
        "saes": sorted(catalogue.saes),
        "default_probes": list(catalogue.default_probes),
        "presets": list(state.presets),
        "self_test": state.self_test,
        "reload_error": state.registry.reload_error,
    }


def _gate_scopes(state: ApiState) -> list[str]:
    """Those that this engine keeps. Over pipeline stages, `rest` needs its probe on no later one than its edit."""
    if not state.layout.chain_steps:
        return []
    return ["token"] if state.registry.shape.drafts else ["token", "rest"]


def _limits(state: ApiState) -> dict[str, float | None]:
    return {
        "max_edits": state.limits.max_edits,
        "max_strength": state.limits.max_strength,
        "max_inline_bytes": state.limits.max_inline_bytes,
        "max_body_bytes": MAX_BODY_BYTES,
        "max_sae_bytes": state.limits.max_sae_bytes,
        "rows": state.layout.rows,
        "rows_per_plan": state.layout.rows_per_plan,
        "chains": state.layout.chains if state.layout.chain_steps else 0,
        "chain_steps": state.layout.chain_steps,
        "readouts": state.layout.readouts,
        "max_results": state.results.max_records,
    }
