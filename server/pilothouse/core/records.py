"""What is known of a scored or steered request once it has ended; telemetry and the record store take it from here."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class ProbeOutcome:
    """One probe on one choice. `score` is None with a `reason` when nothing could be scored."""

    probe: str
    score: float | None
    prompt_end: float | None
    flagged: bool
    n_scored: int
    reason: str | None = None


@dataclass(frozen=True)
class ChoiceOutcome:
    """One choice: its probes and how many of its tokens were edited, by configured vector name or `adhoc`."""

    probes: tuple[ProbeOutcome, ...] = ()
    tokens_edited: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestOutcome:
    """A whole request. `steering` is `none`, a configured name, names joined by `+`, or `adhoc`."""

    response_id: str
    model_name: str
    route: str
    steering: str
    steered_by: tuple[str, ...]
    created: float
    choices: tuple[ChoiceOutcome, ...]
    body: tuple[dict[str, Any], ...] = ()
    error: str | None = None


class OutcomeSink(Protocol):
    """Takes finished requests; one that fails must not disturb the request or the other sinks."""

    def observe(self, outcome: RequestOutcome) -> None: ...
