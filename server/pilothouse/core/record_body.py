"""A finished request as its record shows it, in memory and in the database alike."""

from typing import Any

from pilothouse.core.records import RequestOutcome


def record_body(outcome: RequestOutcome, replaced: int = 0) -> dict[str, Any]:
    """The record, texts apart. replaced: earlier records under its id of which it took the place."""
    return {
        "id": outcome.response_id,
        "object": "probe.result",
        "created": int(outcome.created),
        "time": outcome.created,
        "model": outcome.model_name,
        "route": outcome.route,
        "steering": outcome.steering,
        "flagged": outcome.flagged,
        "error": outcome.error,
        "seconds": outcome.seconds,
        "n_prompt": outcome.n_prompt,
        "plan_digests": list(outcome.plan_digests),
        "strengths": outcome.strengths,
        "trace_id": None if outcome.trace is None else outcome.trace.trace_id,
        "replaced": replaced,
        "choices": list(outcome.body),
    }
