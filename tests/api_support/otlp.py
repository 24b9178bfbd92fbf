"""A collector in this process: it takes OpenTelemetry's requests over HTTP or gRPC, and keeps what they say."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

EVALUATION = "gen_ai.evaluation.result"


@dataclass
class Kept:
    """What came. status: answered to every request over HTTP; held: requests are answered once it is set."""

    url: str = ""
    status: int = 200
    held: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    logs: list[ExportLogsServiceRequest] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [s for request in self.traces for r in request.resource_spans for b in r.scope_spans for s in b.spans]

    @property
    def records(self) -> list[Any]:
        return [
            r for request in self.logs for some in request.resource_logs for b in some.scope_logs for r in b.log_records
        ]


@contextmanager
def http_collector(status: int = 200, slow: bool = False) -> Iterator[Kept]:
    """One that answers `status`; slow: not before it is told to."""
    kept = Kept(status=status)
    if not slow:
        kept.held.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            kept.arrived.set()
            kept.held.wait(30)
            if kept.status == 200:
                if self.path == "/v1/traces":
                    kept.traces.append(ExportTraceServiceRequest.FromString(body))
                else:
                    assert self.path == "/v1/logs"
                    kept.logs.append(ExportLogsServiceRequest.FromString(body))
            try:
                self.send_response(kept.status)
                self.send_header("content-length", "0")
                self.end_headers()
            except OSError:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield kept
    finally:
        kept.held.set()
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_collector() -> Iterator[Kept]:
    kept = Kept()

    class Traces(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
            kept.traces.append(request)
            return ExportTraceServiceResponse()

    class Logs(LogsServiceServicer):
        def Export(self, request: ExportLogsServiceRequest, context: Any) -> ExportLogsServiceResponse:  # noqa: N802
            kept.logs.append(request)
            return ExportLogsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
    add_LogsServiceServicer_to_server(Logs(), server)  # type: ignore[no-untyped-call]
    kept.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield kept
    finally:
        server.stop(None).wait()


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes as Python has them."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


def evaluations(span: Span) -> list[dict[str, Any]]:
    """The attributes of a span's events, all of which are evaluations."""
    assert {event.name for event in span.events} <= {EVALUATION}
    return [attributes(event.attributes) for event in span.events]
