"""The registry as metrics show it, and the endpoint that Prometheus scrapes, in the place of vLLM's."""

import asyncio
from collections.abc import Iterable

from fastapi import FastAPI, Request, Response
from starlette.routing import Mount, request_response

from pilothouse.api.catalogue import Catalogue, digest_of
from pilothouse.api.state import state_of
from pilothouse.probing import Probe
from pilothouse.telemetry.exposition import render
from pilothouse.telemetry.metrics import Metrics
from pilothouse.telemetry.registry_info import ProbeInfo, VectorInfo

METRICS = "/metrics"


def show_catalogue(metrics: Metrics, model_name: str, catalogue: Catalogue) -> None:
    """Let `metrics` know all that is registered."""
    vectors = [
        VectorInfo(name, digest_of(vector), _numbers(vector.direction.layers))
        for name, vector in catalogue.vectors.items()
    ]
    probes = [_probe_info(name, probe) for name, probe in catalogue.probes.items()]
    metrics.show_registry(model_name, probes, vectors, catalogue.saes)


def attach_metrics(app: FastAPI) -> None:
    """Answer at `METRICS` instead of vLLM, whose route there knows one format only and no exemplars."""
    # vLLM puts an APIRoute that a plugin adds to the application itself in the place of its own of the same path.
    app.add_api_route(METRICS, metrics_page, methods=["GET"], include_in_schema=False)
    for route in app.routes:
        # Behind its route it has mounted an application that answers at every other path that begins like this one.
        if isinstance(route, Mount) and route.path == METRICS:
            route.app = request_response(metrics_page)


async def metrics_page(request: Request) -> Response:
    """All metrics of the server, in the format that the client asks for."""
    headers = (",".join(request.headers.getlist(name)) for name in ("accept", "accept-encoding"))
    # Neither on the event loop, where responses are streamed, nor in the pool of the routes, which may be full.
    page = await asyncio.to_thread(render, state_of(request).metrics, *headers)
    return Response(page.body, headers=page.headers)


def _probe_info(name: str, probe: Probe) -> ProbeInfo:
    return ProbeInfo(
        name=name,
        version=probe.version,
        layers=_numbers(probe.weights),
        aggregate=probe.aggregate,
        calibration="none" if probe.calibration is None else probe.calibration.kind,
        alarm=probe.alarm,
        threshold=probe.threshold,
        reference_histogram=probe.card.get("reference_histogram"),
    )


def _numbers(layers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(layers)))
