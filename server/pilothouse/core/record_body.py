"""A finished request as its record shows it, in memory and in the database alike."""

from collections.abc import Iterable, Mapping
from typing import Any

from pilothouse.core.listing import Listing
from pilothouse.core.records import RequestOutcome

REASONS = ("reasons",)
TOKEN_LISTS = ("tokens", "prompt_tokens", *REASONS)
"""What the entry of a probe may list, an entry for each of some tokens."""

_WORDS = ("token", "token_id")


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


def without_words(
    probes: Mapping[str, Mapping[str, Any]], lists: Iterable[str] = TOKEN_LISTS
) -> dict[str, dict[str, Any]]:
    """The probes of a choice by name, of which `lists` no longer say what the tokens are: scores stay, in order."""
    return {
        name: {**shown, **{key: _wordless(shown[key]) for key in lists if key in shown}}
        for name, shown in probes.items()
    }


def _wordless(listed: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return listed.without_words() if isinstance(listed, Listing) else [_numbers(entry) for entry in listed]


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _WORDS}
