"""What is known of a scored or steered request once it has ended; telemetry and the record store take it from here."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pilothouse.core.trace import TraceContext

GapKind = Literal["forwarded", "edited", "scored"]
"""What the engine should have done to a position and did not."""

NO_TOKEN_IDS = "no_token_ids"
"""Why nothing was scored behind a prompt that has no token ids: embeddings, or input that arrives in real time."""


ABORTED = "aborted"
"""Why a request ended that its client gave up."""

REFUSED = "refused"
"""Why a request ended that turned out to be a bad one: it ran nothing, and leaves no record."""


@dataclass(frozen=True)
class Activity:
    """How active a watched SAE feature was on the scored tokens of one choice: at how many of them it was active, and
    the sum of its activations."""

    n_active: int
    total: float


@dataclass(frozen=True)
class ProbeOutcome:
    """One probe on one choice. `score` is None with a `reason` when nothing could be scored.

    probe: its configured name, or `adhoc`; n_scored, n_expected: generated tokens that have a score, and that could
    have one (all but the last); version: the probe's digest; statistic: the aggregated logit that `score` calibrates;
    level: the score in words, None where the card has none; activity: of watched SAE features only.
    """

    probe: str
    score: float | None
    prompt_end: float | None
    flagged: bool
    n_scored: int
    reason: str | None = None
    n_expected: int = 0
    version: str = ""
    statistic: float | None = None
    level: str | None = None
    activity: Activity | None = None


@dataclass(frozen=True)
class GateOutcome:
    """A gate of one choice, open at `n_open` positions; `vector` and `probe` are configured names or `adhoc`."""

    vector: str
    probe: str
    action: Literal["steer", "stop"]
    n_open: int


@dataclass(frozen=True)
class ChoiceOutcome:
    """One choice: its probes, how many of its tokens were edited, by configured vector name or `adhoc`, what the
    engine left out, each kind once, and its gates that opened."""

    probes: tuple[ProbeOutcome, ...] = ()
    tokens_edited: dict[str, int] = field(default_factory=dict)
    gaps: tuple[GapKind, ...] = ()
    gates: tuple[GateOutcome, ...] = ()
    n_generated: int = 0


@dataclass(frozen=True)
class RequestOutcome:
    """A whole request. `steering` is `none`, a configured name, names joined by `+`, or `adhoc`.

    created: seconds since 1970; seconds: from validation to the end of the response; body: the choices as the record
    shows them; plan_digests: of the edits, in the order of the request; strengths: how far the edits of a configured
    vector (or `adhoc`) push the stream at the layer where they push it most, in lengths of the stream, where known;
    text: prompts and completions, where the server keeps them.
    """

    response_id: str
    model_name: str
    route: str
    steering: str
    steered_by: tuple[str, ...]
    created: float
    choices: tuple[ChoiceOutcome, ...]
    body: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    seconds: float = 0.0
    n_prompt: int = 0
    plan_digests: tuple[str, ...] = ()
    strengths: dict[str, float] = field(default_factory=dict)
    trace: TraceContext | None = None
    text: dict[str, Any] | None = None

    @property
    def flagged(self) -> bool:
        """Whether any probe flagged any choice."""
        return any(probe.flagged for choice in self.choices for probe in choice.probes)


class OutcomeSink(Protocol):
    """Takes finished requests; one that fails must not disturb the request or the other sinks."""

    def observe(self, outcome: RequestOutcome) -> None: ...
