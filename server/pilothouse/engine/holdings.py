"""What the scheduler keeps of a request with a plan: what it holds, what it waits for, what has been read of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pilothouse.core.messages import Reading, StepCost, WirePlan, reading_encoder
from pilothouse.core.plans import END
from pilothouse.core.sites import Float32
from pilothouse.engine.score_store import BlockCollector


@dataclass
class Held:
    """What a request holds from its admission until it is freed."""

    plan: WirePlan
    slot: int
    chain_key: bytes
    chain: int
    columns: tuple[int, ...]
    collector: BlockCollector | None
    stop_at: int = END
    stop_reason: str = ""

    def look(self, start: int, rows: Float32) -> None:
        """Note whether the readouts [n, readouts of the request] of positions [start, start + n) end the sequence."""
        for stop in self.plan.stops:
            seen, level = rows[:, stop.readout], np.float32(stop.level)
            met = np.flatnonzero(seen > level if stop.above else seen < level) + start
            met = met[(met >= stop.start) & (met < stop.stop)]
            if len(met) and met[0] < self.stop_at:
                self.stop_at, self.stop_reason = int(met[0]), f"probe:{stop.probe}"


class Lack(NamedTuple):
    """For want of what a request must wait."""

    slot: bool
    chain: bool
    columns: bool


@dataclass(frozen=True)
class Refusal:
    """When a waiting request was first refused, and what it lacked last."""

    step: int
    lack: Lack


@dataclass
class Buffer:
    """Readings of a request since its last output: stretches of positions by their first one, with a flag for each
    that says whether it was edited, and rows of readouts [n, readouts of the request] likewise."""

    runs: list[tuple[int, npt.NDArray[np.bool_]]] = field(default_factory=list)
    scores: list[tuple[int, Float32]] = field(default_factory=list)
    cached: int = 0

    def cut(self, end: int) -> None:
        """Forget positions from `end` on: the sequence has ended before them."""
        self.runs = [(start, edited[: end - start]) for start, edited in self.runs if start < end]
        self.scores = [(start, rows[: end - start]) for start, rows in self.scores if start < end]

    def encode(self, cost: StepCost) -> bytes:
        """As it travels to the API process, with what the steps of all requests have cost since one last did."""
        return reading_encoder.encode(
            Reading(
                tuple((start, len(edited), int(edited.sum())) for start, edited in self.runs),
                tuple((start, len(rows)) for start, rows in self.scores),
                b"".join(rows.tobytes() for _, rows in self.scores),
                self.cached,
                cost,
            )
        )
