"""What travels on an engine's output, as a client takes it off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pilothouse.core.messages import LIVE_KEY, READING_KEY, Reading, live_decoder, reading_decoder


def take_readings(output: Any) -> Iterator[tuple[str, Reading]]:
    """The readings that an output brings, each with its request; those of a step at once are made like the others."""
    params = output.kv_transfer_params or {}
    live, alone = params.pop(LIVE_KEY, None), params.pop(READING_KEY, None)
    output.kv_transfer_params = params or None
    for told in live_decoder.decode(live) if live is not None else ():
        table = np.frombuffer(told.scores, np.float32).reshape(len(told.request_ids), -1)
        cost = told.cost
        for request_id, start, edited, row in zip(told.request_ids, told.starts, told.edited, table, strict=True):
            at = start + told.advanced
            scored = ((at, 1),) if told.scores else ()
            yield request_id, Reading(((at, 1, edited),), scored, row.tobytes(), cost=cost)
            cost = type(cost)()
    if alone is not None:
        yield output.request_id, reading_decoder.decode(alone)
