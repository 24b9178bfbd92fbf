"""What whoever converts a probe says of it, because its own file does not."""

from dataclasses import dataclass

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.aggregation import Aggregate, Alarm


@dataclass(frozen=True)
class ProbeOptions:
    """name: what requests will call it, else made from the folder's name; model: what it was made for; the others as
    in a card: what a high score means, which end is bad, how tokens become a sequence's score, and where it is flagged.
    """

    name: str | None = None
    model: str | None = None
    label: str = "hallucination"
    alarm: Alarm = "high"
    aggregate: Aggregate = "max"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not self.label:
            raise ArtefactError("a probe's label cannot be empty")
        if not 0 <= self.threshold <= 1:
            raise ArtefactError(f"a threshold is a score from 0 to 1, not {self.threshold}")
