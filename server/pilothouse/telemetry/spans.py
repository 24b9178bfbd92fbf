"""An OpenTelemetry span for each finished request, with what its probes found as events.

Names and their meaning: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md; what
begins with `pilothouse.` is our own. Never prompts, completions or tokens.
"""

import os
import re
from importlib.metadata import version

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from pilothouse.core.records import NO_TOKEN_IDS, RequestOutcome
from pilothouse.core.trace import TraceContext
from pilothouse.telemetry.evaluations import evaluations, plain
from pilothouse.telemetry.otlp import Collector

NAME = "pilothouse"

LOGS_EXPORTER = "OTEL_LOGS_EXPORTER"
"""The SDK's own variable: `otlp` has evaluations go out as log records beside the spans' events."""

_COMPLETIONS = "/v1/completions"

_WORD = re.compile(r"[A-Za-z_]{1,64}")
_GAP = "engine_gap"
_OTHER = "_OTHER"
"""As the conventions call an error without a name; its text stays out of `error.type`, which is to have few values."""


class Spans:
    """An `OutcomeSink`: spans go to the collector at `endpoint` in the background. Those of traces that are not sampled
    stay here. What the collector does not take is dropped and counted. StartupError for a bad endpoint."""

    def __init__(self, endpoint: str, delay: float = 1.0, queue: int = 2048, timeout: float | None = None) -> None:
        self._resource = _resource()
        self._scope = InstrumentationScope(NAME, version(NAME))
        logs = os.environ.get(LOGS_EXPORTER) == "otlp"
        self._collector = Collector(endpoint, logs, delay, queue, timeout)

    def observe(self, outcome: RequestOutcome) -> None:
        """Have the request's span sent, soon."""
        trace = outcome.trace or TraceContext.of_request(None)
        if trace.sampled:
            self._collector.send(self._span(outcome, trace))

    def counts(self) -> dict[str, int]:
        """Spans `exported` and `dropped` so far; those on their way are neither."""
        return self._collector.counts()

    def log_counts(self) -> dict[str, int]:
        """Log records `exported` and `dropped`, of the spans that were sent off."""
        return self._collector.log_counts()

    def close(self, timeout: float = 2.0) -> None:
        """Send what waits, for as many seconds; the rest is dropped."""
        self._collector.close(timeout)

    def _span(self, outcome: RequestOutcome, trace: TraceContext) -> ReadableSpan:
        operation = "text_completion" if outcome.route == _COMPLETIONS else "chat"
        end = _nanoseconds(outcome.created + outcome.seconds)
        return ReadableSpan(
            name=f"{operation} {outcome.model_name}",
            context=_context(trace.trace_id, trace.span_id),
            parent=None if trace.parent_id is None else _context(trace.trace_id, trace.parent_id, is_remote=True),
            resource=self._resource,
            attributes={"gen_ai.operation.name": operation, **_attributes(outcome)},
            events=evaluations(outcome, end),
            kind=SpanKind.SERVER,
            status=_status(outcome),
            start_time=_nanoseconds(outcome.created),
            end_time=end,
            instrumentation_scope=self._scope,
        )


def _resource() -> Resource:
    """Who sends the spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word."""
    own: dict[str, AttributeValue] = {SERVICE_NAME: NAME, SERVICE_VERSION: version(NAME), "process.pid": os.getpid()}
    return Resource.create({}).merge(Resource(own)).merge(OTELResourceDetector().detect())


def _nanoseconds(seconds: float) -> int:
    """Whole microseconds of it: a float knows no more of the time since 1970."""
    return round(seconds * 1_000_000) * 1000


def _context(trace_id: str, span_id: str, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))


def _attributes(outcome: RequestOutcome) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "gen_ai.provider.name": NAME,
        "gen_ai.request.model": outcome.model_name,
        "gen_ai.usage.input_tokens": outcome.n_prompt,
        "gen_ai.usage.output_tokens": sum(choice.n_generated for choice in outcome.choices),
        "pilothouse.route": outcome.route,
        "pilothouse.steering": outcome.steering,
        "pilothouse.vectors": list(outcome.steered_by),
        "pilothouse.plan_digests": list(outcome.plan_digests),
        "pilothouse.flagged": outcome.flagged,
    }
    if outcome.response_id:
        found["gen_ai.response.id"] = plain(outcome.response_id)
    if reasons := [reason for choice in outcome.body if (reason := choice.get("finish_reason")) is not None]:
        found["gen_ai.response.finish_reasons"] = reasons
    if _failed(outcome):
        found["error.type"] = _error_type(outcome)
    return found


def _failed(outcome: RequestOutcome) -> bool:
    return outcome.error not in (None, NO_TOKEN_IDS)


def _error_type(outcome: RequestOutcome) -> str:
    if outcome.error and _WORD.fullmatch(outcome.error):
        return outcome.error
    return _GAP if any(choice.gaps for choice in outcome.choices) else _OTHER


def _status(outcome: RequestOutcome) -> Status:
    return Status(StatusCode.ERROR, plain(outcome.error or "")) if _failed(outcome) else Status(StatusCode.UNSET)
