"""Pilothouse as an endpoint plugin of vLLM's server: routes and guard at build time, the engine's end at start."""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

from pilothouse.api.assessment import keep_assessing
from pilothouse.api.catalogue import Catalogue
from pilothouse.api.extension import Extension
from pilothouse.api.guard import FieldGuard
from pilothouse.api.metrics import attach_metrics, show_catalogue
from pilothouse.api.peers import Message, Peers
from pilothouse.api.plans import Planner
from pilothouse.api.presets import Preset, Presets, load_presets
from pilothouse.api.record_access import FLUSH_SECONDS
from pilothouse.api.registry import Registry
from pilothouse.api.results import ResultsStore
from pilothouse.api.routes import make_router
from pilothouse.api.scoring import remembered
from pilothouse.api.session import ReadText, Surroundings
from pilothouse.api.state import ATTRIBUTE, ApiState
from pilothouse.api.trace_context import TraceRequests
from pilothouse.api.watch import watch
from pilothouse.core.config import EngineLayout, ServerConfig
from pilothouse.core.errors import BadRequest, StartupError
from pilothouse.core.messages import StepCost
from pilothouse.core.serving import RequestExtension
from pilothouse.core.siblings import Siblings
from pilothouse.core.sites import ModelShape
from pilothouse.records.service import open_records
from pilothouse.records.writer import RecordWriter
from pilothouse.telemetry.followed import DROP_REASONS, RecordCounts
from pilothouse.telemetry.log_lines import LogLines
from pilothouse.telemetry.metrics import Metrics
from pilothouse.telemetry.sinks import Sinks
from pilothouse.telemetry.spans import Spans

Outlet = LogLines | Spans | RecordWriter
"""Where outcomes go beside metrics; closed when the server ends, so that what waits in it gets there."""


class PilothousePlugin:
    """What `vllm.endpoint_plugins` expects."""

    name = "pilothouse"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes and, inside vLLM's authentication, the guard and the traces around it."""
        app.include_router(make_router())
        attach_metrics(app)
        app.add_middleware(FieldGuard)
        app.add_middleware(TraceRequests)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Load what the configuration names, swap the serving classes, and see that steering steers and reading reads;
        any error ends the start."""
        # The only room that imports vLLM; routes and tests do without it.
        from pilothouse.engine.frontend import install
        from pilothouse.engine.own_requests import deliver
        from pilothouse.engine.selftest import self_test

        config = ServerConfig.from_environment()
        siblings = Siblings.from_environment()
        peers = None if siblings is None else Peers(siblings)

        def make_extension(
            shape: ModelShape, layout: EngineLayout, read_text: ReadText, bos_token_id: int | None
        ) -> RequestExtension:
            extension, api_state = assemble(config, shape, layout, read_text, bos_token_id, peers=peers)
            setattr(state, ATTRIBUTE, api_state)
            return extension

        install(engine_client, state, make_extension)
        assembled: ApiState = getattr(state, ATTRIBUTE)
        if peers is not None:
            # From here on no other API server changes the registry without this one.
            await peers.listen(partial(answer_peer, assembled))
        traced = getattr(args, "otlp_traces_endpoint", None) is not None
        served = replace(assembled, deliver=partial(deliver, engine_client), engine_traces=traced)
        lengths: Mapping[int, float] = {}
        if config.self_test:
            report = await self_test(engine_client)
            lengths = report.lengths
            served = replace(served, self_test=str(report))
        served.strength_limit.lengths = lengths
        served.registry.recheck()
        if config.reload_seconds and (peers is None or peers.first):
            served.keep(watch(served.registry, config.reload_seconds))
        if served.records is not None:
            served.keep(keep_assessing(served.records.store, served.registry, served.metrics))
        setattr(state, ATTRIBUTE, served)


def create_plugin() -> PilothousePlugin:
    """The entry point."""
    return PilothousePlugin()


def assemble(
    config: ServerConfig,
    shape: ModelShape,
    layout: EngineLayout,
    read_text: ReadText,
    bos_token_id: int | None,
    make_metrics: Callable[[], Metrics] = Metrics,
    peers: Peers | None = None,
) -> tuple[Extension, ApiState]:
    """The parts of a server for a model of this shape, wired together; ArtefactError or StartupError if one is bad.

    peers: further API servers of this server.
    """
    if peers is not None and config.uploads is None:
        config = replace(config, uploads=peers.uploads)
    registry = Registry(config, shape, peers)
    results = ResultsStore(config.max_results)
    metrics = make_metrics()
    registry.watch(partial(show_catalogue, metrics, shape.model))
    outlets = _outlets(config, metrics)
    records = open_records(config.records)
    if records is not None:
        metrics.follow_records(partial(_count_records, records.writer))
        outlets.append(records.writer)
    sinks = Sinks(metrics, results, *outlets)
    metrics.follow_sink_errors(lambda: dict(sinks.errors))
    around = Surroundings(
        sink=sinks,
        decode=remembered(lambda token_id: read_text([token_id])),
        spent=partial(_count_steps, metrics, sinks),
        bos_token_id=bos_token_id,
        max_names_in_label=config.limits.max_steering_names_in_label,
        model_name=shape.model,
        lost=sinks.lose,
        read_text=read_text if config.records.text else None,
    )
    planner = Planner(registry, layout, config.limits)
    presets = load_presets(config.presets)
    registry.require(partial(_check_plans, planner, config, presets))
    state = ApiState(
        registry,
        results,
        layout,
        config.limits,
        config.admin_key,
        planner.strength_limit,
        metrics,
        presets=tuple(presets),
        peers=peers,
        closing=tuple(outlet.close for outlet in outlets),
        reader_key=config.reader_key,
        records=records,
    )
    return Extension(planner, around, Presets(presets)), state


def _outlets(config: ServerConfig, metrics: Metrics) -> list[Outlet]:
    """Where outcomes go beside metrics and records; each tells the metrics what it lost."""
    outlets: list[Outlet] = []
    if config.request_log is not None:
        lines = LogLines(config.request_log)
        metrics.follow_log_lines(lines.counts)
        outlets.append(lines)
    if config.otlp_endpoint is not None:
        spans = Spans(config.otlp_endpoint)
        metrics.follow_spans(spans.counts)
        outlets.append(spans)
    return outlets


def _count_records(writer: RecordWriter) -> RecordCounts:
    counts = writer.counts()
    dropped = {reason: counts[reason] for reason in DROP_REASONS}
    return RecordCounts(counts["written"], counts["queued"], dropped)


def _count_steps(metrics: Metrics, sinks: Sinks, model_name: str, cost: StepCost) -> None:
    try:
        metrics.add_step_times(model_name, {"prepare": cost.prepare, "read": cost.read}, cost.steps)
    except Exception:
        # It would end the engine's output loop, and with it every request.
        sinks.lose()


async def answer_peer(state: ApiState, message: Message) -> str | None:
    """What another API server of this server is told, or asks: a change of the registry, for a record, or to write all
    of them."""
    match message["do"]:
        case "nothing":
            return None
        case "record":
            kept = state.results.find(message["id"])
            return None if kept is None else kept.decode()
        case "flush":
            if state.records is not None:
                await asyncio.to_thread(state.records.writer.flush, FLUSH_SECONDS)
            return None
    # Not in the pool of the routes, whose threads may all wait for the API server that says this.
    await asyncio.to_thread(state.registry.follow, message)
    return None


def _check_plans(planner: Planner, config: ServerConfig, presets: Mapping[str, Preset], catalogue: Catalogue) -> None:
    """StartupError unless default probes and presets can be served from `catalogue`."""
    try:
        planner.defaults(catalogue)
    except BadRequest as error:
        raise StartupError(f"--default-probes cannot be served: {error}") from None
    for name, preset in presets.items():
        try:
            planner.plan(preset.fields, catalogue)
        except BadRequest as error:
            raise StartupError(f"{config.presets}: preset {name!r}: {error}") from None
