"""What the scheduler keeps of a request with a plan: what it holds, and what it waits for."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pilothouse.core.messages import WirePlan
from pilothouse.core.plans import END
from pilothouse.core.sites import Float32
from pilothouse.engine.score_store import BlockCollector


@dataclass
class Held:
    """What a request holds from its admission until it is freed."""

    plan: WirePlan
    rows: tuple[int, ...]
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

    rows: bool
    chain: bool
    columns: bool


@dataclass(frozen=True)
class Refusal:
    """When a waiting request was first refused, and what it lacked last."""

    step: int
    lack: Lack
