"""What is known of a scored or steered request once it has ended; telemetry and the record store take it from here."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

GapKind = Literal["forwarded", "edited", "scored"]
"""What the engine should have done to a position and did not."""

NO_TOKEN_IDS = "no_token_ids"
"""Why nothing was scored behind a prompt that has no token ids: embeddings, or input that arrives in real time."""


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
    """One choice: its probes, how many of its tokens were edited, by configured vector name or `adhoc`, and what the
    engine left out, each kind once."""

    probes: tuple[ProbeOutcome, ...] = ()
    tokens_edited: dict[str, int] = field(default_factory=dict)
    gaps: tuple[GapKind, ...] = ()


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
