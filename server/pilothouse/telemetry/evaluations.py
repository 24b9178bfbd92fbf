"""What probes found as OpenTelemetry has it: the event `gen_ai.evaluation.result`, one for each probe and choice.

Names and their meaning: https://github.com/open-telemetry/semantic-conventions-genai, model/gen-ai/events.yaml, where
the conventions went that the package opentelemetry-semantic-conventions has as deprecated. There an event is a log
record within the context of its span. Python's SDK calls its logs experimental (`opentelemetry.sdk._logs`), and stores
of traces take no logs, so the same events are also, and first of all, events of the span.
"""

from collections.abc import Iterable, Sequence

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import NonRecordingSpan, set_span_in_context
from opentelemetry.util.types import AttributeValue

from pilothouse.core.records import ProbeOutcome, RequestOutcome

EVALUATION = "gen_ai.evaluation.result"

FLAGGED, UNFLAGGED = "flagged", "ok"
"""What a score is called where the probe's card has no words for it."""

_LONGEST = 256


def plain(text: str) -> str:
    """`text` as protobuf takes it, and no longer than a collector likes: a client may have chosen it."""
    return text[:_LONGEST].encode(errors="replace").decode()


def evaluations(outcome: RequestOutcome, at: int) -> list[Event]:
    """The events of a request, at so many nanoseconds since 1970."""
    return [
        Event(EVALUATION, _attributes(outcome, index, probe), at)
        for index, choice in enumerate(outcome.choices)
        for probe in choice.probes
    ]


def _attributes(outcome: RequestOutcome, choice: int, probe: ProbeOutcome) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "gen_ai.evaluation.name": plain(probe.probe),
        "pilothouse.choice": choice,
        "pilothouse.scored_tokens": probe.n_scored,
    }
    if probe.score is not None:
        found["gen_ai.evaluation.score.value"] = probe.score
        found["gen_ai.evaluation.score.label"] = probe.level or (FLAGGED if probe.flagged else UNFLAGGED)
        found["pilothouse.flagged"] = probe.flagged
    elif probe.reason is not None:
        found["gen_ai.evaluation.explanation"] = f"not scored: {plain(probe.reason)}"
    if outcome.response_id:
        found["gen_ai.response.id"] = plain(outcome.response_id)
    if probe.version:
        found["pilothouse.probe.version"] = probe.version
    return found


def log_records(spans: Iterable[ReadableSpan]) -> list[ReadableLogRecord]:
    """The events of these spans as log records in their contexts."""
    return [record for span in spans for record in _records_of(span, span.events)]


def _records_of(span: ReadableSpan, events: Sequence[Event]) -> list[ReadableLogRecord]:
    assert span.context is not None
    context = set_span_in_context(NonRecordingSpan(span.context))
    return [
        ReadableLogRecord(
            LogRecord(
                timestamp=event.timestamp,
                observed_timestamp=event.timestamp,
                context=context,
                severity_number=SeverityNumber.INFO,
                attributes=event.attributes,
                event_name=event.name,
            ),
            span.resource,
            span.instrumentation_scope,
        )
        for event in events
    ]
