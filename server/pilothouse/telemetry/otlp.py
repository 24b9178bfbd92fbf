"""Finished spans on their way to an OpenTelemetry collector: in batches, by a thread of the SDK's, and all counted."""

import logging
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from pilothouse.core.errors import StartupError
from pilothouse.core.url_errors import masked
from pilothouse.telemetry.evaluations import log_records
from pilothouse.telemetry.losses import Losses

_BATCH = 512
_QUEUE = 2048

_GRPC_PORT = 4317

_TALKATIVE = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)
"""What logs every failure; vLLM's spans go through the same modules."""

_ours: ContextVar[bool] = ContextVar("pilothouse_exports", default=False)


class Endpoint(NamedTuple):
    """A collector. url: as the SDK's exporters take it, without the path of a signal."""

    grpc: bool
    secure: bool
    url: str


def parse_endpoint(text: str) -> Endpoint:
    """`http://` and `https://`: protobuf over HTTP, the paths `/v1/traces` and `/v1/logs` appended; `grpc://` and,
    encrypted, `grpcs://`: gRPC. StartupError for anything else."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _bad(text) from None
    if not parts.hostname or parts.query or parts.fragment:
        raise _bad(text)
    match parts.scheme:
        case "http" | "https":
            path = parts.path.rstrip("/").removesuffix("/v1/traces")
            return Endpoint(False, parts.scheme == "https", f"{parts.scheme}://{parts.netloc}{path}")
        case "grpc" | "grpcs" if parts.path in ("", "/") and "@" not in parts.netloc:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            secure = parts.scheme == "grpcs"
            return Endpoint(True, secure, f"http{'s' * secure}://{host}:{port or _GRPC_PORT}")
    raise _bad(text)


def check_endpoint(text: str | None) -> None:
    """StartupError where `text` names no collector."""
    if text is not None:
        parse_endpoint(text)


def _bad(text: str) -> StartupError:
    return StartupError(
        f"--otlp-endpoint takes http://HOST:4318, https://..., grpc://HOST:4317 or grpcs://..., not {masked(text)!r}"
    )


class Collector:
    """Sends spans to the collector at `endpoint`, as far as it takes them. StartupError for a bad endpoint.

    logs: whether their events go there as log records, too; delay: seconds between batches, unless one is full; queue:
    spans that may wait or be on their way; timeout: seconds for a batch, None for what OTEL_EXPORTER_OTLP_TIMEOUT says,
    or 10.
    """

    def __init__(
        self,
        endpoint: str,
        logs: bool = False,
        delay: float = 1.0,
        queue: int = _QUEUE,
        timeout: float | None = None,
    ) -> None:
        to = parse_endpoint(endpoint)
        self._limit = queue
        self._lock = threading.Lock()
        self._on_their_way = self._exported = self._dropped = 0
        self._logs_exported = self._logs_dropped = 0
        self._closed = self._given_up = False
        self._losses, self._log_losses = Losses("spans"), Losses("log records")
        self._name = masked(to.url)
        _be_quiet()
        self._exporter = _Exporter(self, _span_exporter(to, timeout), _log_exporter(to, timeout) if logs else None)
        # Its own bound is never met: ours counts what is in its queue and what has left it.
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=queue,
            schedule_delay_millis=delay * 1000,
            max_export_batch_size=min(_BATCH, queue),
        )

    def send(self, span: ReadableSpan) -> None:
        """Have the span sent, soon; it is dropped when too many wait."""
        with self._lock:
            fits = not self._closed and self._on_their_way < self._limit
            if fits:
                self._on_their_way += 1
            else:
                self._dropped += 1
        if fits:
            self._processor.on_end(span)
        else:
            self._losses.tell(self._dropped, f"too many wait for {self._name}")

    def counts(self) -> dict[str, int]:
        """Spans `exported` and `dropped` so far; those on their way are neither."""
        with self._lock:
            return {"exported": self._exported, "dropped": self._dropped}

    def log_counts(self) -> dict[str, int]:
        """Log records `exported` and `dropped`, of the spans that were sent off."""
        with self._lock:
            return {"exported": self._logs_exported, "dropped": self._logs_dropped}

    def close(self, timeout: float) -> None:
        """Send what waits, for as many seconds; the rest is dropped."""
        with self._lock:
            self._closed = True
        # The SDK would wait for half a minute.
        ending = threading.Thread(target=self._processor.shutdown, daemon=True)
        ending.start()
        ending.join(timeout)
        self._exporter.shutdown()
        with self._lock:
            self._given_up = True
            self._dropped += self._on_their_way
            self._on_their_way = 0

    def settle(self, n: int, delivered: bool) -> None:
        """Count a batch of `n` spans that has come to its end."""
        with self._lock:
            if self._given_up:
                return
            self._on_their_way -= n
            if delivered:
                self._exported += n
            else:
                self._dropped += n
        if not delivered:
            self._losses.tell(self._dropped, f"{self._name} did not take them")

    def settle_logs(self, n: int, delivered: bool) -> None:
        """Count `n` log records that the collector took, or did not."""
        with self._lock:
            if delivered:
                self._logs_exported += n
            else:
                self._logs_dropped += n
        if not delivered:
            self._log_losses.tell(self._logs_dropped, f"{self._name} did not take them")


class _Exporter(SpanExporter):
    """What the SDK's thread gives batches to."""

    def __init__(self, collector: Collector, spans: SpanExporter, logs: LogRecordExporter | None) -> None:
        self._collector = collector
        self._spans = spans
        self._logs = logs
        self._shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, and say what became of it. Errors are for the SDK to report: the next batch is tried."""
        token = _ours.set(True)
        result = SpanExportResult.FAILURE
        try:
            result = self._spans.export(spans)
        finally:
            self._collector.settle(len(spans), result is SpanExportResult.SUCCESS)
            _ours.reset(token)
        if self._logs is not None and (records := log_records(spans)):
            self._export_logs(self._logs, records)
        return result

    def _export_logs(self, exporter: LogRecordExporter, records: list[ReadableLogRecord]) -> None:
        token = _ours.set(True)
        delivered = False
        try:
            delivered = exporter.export(records) is LogRecordExportResult.SUCCESS
        finally:
            self._collector.settle_logs(len(records), delivered)
            _ours.reset(token)

    def shutdown(self) -> None:
        """End what is being tried, and try no more."""
        if self._shut:
            return
        self._shut = True
        self._spans.shutdown()
        if self._logs is not None:
            self._logs.shutdown()  # type: ignore[no-untyped-call]


# Imported within: gRPC and requests take their time, and most servers need at most one of them.
def _span_exporter(to: Endpoint, timeout: float | None) -> SpanExporter:
    if to.grpc:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=to.url, insecure=not to.secure, timeout=timeout)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=f"{to.url}/v1/traces", timeout=timeout)


def _log_exporter(to: Endpoint, timeout: float | None) -> LogRecordExporter:
    if to.grpc:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter

        return GrpcExporter(endpoint=to.url, insecure=not to.secure, timeout=timeout)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter

    return HttpExporter(endpoint=f"{to.url}/v1/logs", timeout=timeout)


def _not_ours(record: logging.LogRecord) -> bool:
    return not _ours.get()


def _be_quiet() -> None:
    """Have the exporters say nothing of our batches, whose losses are told once a minute."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_not_ours)
