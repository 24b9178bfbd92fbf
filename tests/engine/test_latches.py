"""Latches by themselves: what they hold must be theirs, whatever lay in the device's memory before."""

from __future__ import annotations

import numpy as np
import torch

from pilothouse.core.messages import RequestOrders, WireGate, WireStep
from pilothouse.engine.latches import Latches


def orders() -> RequestOrders:
    """Two steps one after the other: the first behind a latch on column 1, above 0.5; the second always."""
    gate = WireGate(readout=0, above=True, level=0.5, latched=True)
    steps = tuple(WireStep(b"v", b"", {0: (1.0,)}, False, g, 0, 100) for g in (gate, None))
    return RequestOrders(rows=(), spans=(), columns=(1,), read_from=0, chain=1, steps=steps)


def test_a_line_is_set_whatever_was_in_the_tables() -> None:
    latches = Latches(2, torch.device("cpu"))
    # What a GPU worker of which sleep took all memory may wake up with.
    for table in (latches.first, latches.columns):
        table.fill_(7_000_000)
    for table in (latches.signs, latches.levels):
        table.fill_(torch.nan)
    latches.set(3, orders())
    line, counts, computed = np.array([3]), np.array([3]), np.array([4])

    def gains() -> list[list[float]]:
        found = torch.ones(3, 2)
        latches.close_gains(found, line, counts, computed)
        return found.tolist()

    assert gains() == [[0, 1], [0, 1], [0, 1]]
    latches.update(torch.tensor([[9.0, 0.0], [9.0, 0.6], [9.0, 0.0]]))
    assert gains() == [[0, 1], [0, 1], [1, 1]]
