"""Gates that stay open: since which position each request's condition has been met, kept on the device.

Nothing of it passes through the host, so a gate opens with the next generated token however far the engine runs ahead.
What is kept is a position, so tokens that are computed again after a preemption find the gate as it was. Position 0,
BOS or the attention sink in its place, is not looked at.
"""

import numpy as np
import torch

from pilothouse.core.messages import RequestOrders
from pilothouse.core.plans import END
from pilothouse.engine.spans import Ints, positions_of


class Latches:
    """first: [lines, chain_steps] int64, the first position at which a step's condition was met, `END` where none was;
    columns, signs, levels: [lines, chain_steps], the condition ``signs * score > signs * level``; steps without a latch
    have sign 0, and are open from the start."""

    def __init__(self, chain_steps: int, device: torch.device) -> None:
        self._device = device
        self._shape = (0, chain_steps)
        self._latched: set[int] = set()
        self._lines: torch.Tensor | None = None
        self._positions: torch.Tensor
        self._tokens: torch.Tensor
        self._allocate(64)

    @property
    def used(self) -> bool:
        """Whether a request that is not over has a latch."""
        return bool(self._latched)

    def set(self, line: int, orders: RequestOrders) -> None:
        """Take in a request that starts; its latches are not met yet."""
        self.clear(line)
        if any(step.gate is not None and step.gate.latched for step in orders.steps):
            self._latched.add(line)
            self._set(line, orders)

    def clear(self, line: int | None) -> None:
        """The request of this line has ended."""
        if line in self._latched:
            self._latched.discard(line)
            self._clear(line)

    @torch.inference_mode()
    def _set(self, line: int, orders: RequestOrders) -> None:
        while line >= self._shape[0]:
            self._allocate(2 * self._shape[0])
        # The whole line, not only what its latches need: a worker that slept may have woken to tables of anything.
        self.first[line], self.columns[line], self.signs[line], self.levels[line] = -1, 0, 0.0, 0.0
        for k, step in enumerate(orders.steps):
            if step.gate is not None and step.gate.latched:
                sign = 1.0 if step.gate.above else -1.0
                self.first[line, k] = END
                self.columns[line, k] = orders.columns[step.gate.readout]
                self.signs[line, k], self.levels[line, k] = sign, sign * step.gate.level

    @torch.inference_mode()
    def _clear(self, line: int) -> None:
        self.first[line], self.signs[line], self.levels[line] = -1, 0.0, 0.0

    def close_gains(self, gains: torch.Tensor, lines: Ints, counts: Ints, computed: Ints) -> None:
        """Set to 0 the gains [n_tokens, chain_steps] of steps whose latch has not been met before the token. Of each
        request: its line, its tokens in the step, and the position of the first."""
        self._lines = None
        if not self._latched:
            return
        token_lines, positions = np.repeat(lines, counts), positions_of(counts, computed)
        tokens = np.flatnonzero(np.isin(token_lines, list(self._latched)))
        if not len(tokens):
            return
        self._tokens, self._lines, self._positions = (
            torch.from_numpy(array).to(self._device, non_blocking=True)
            for array in (tokens, token_lines[tokens], positions[tokens])
        )
        gains[self._tokens] *= (self._positions.unsqueeze(1) > self.first[self._lines]).float()

    def update(self, scores: torch.Tensor) -> None:
        """Note, from the readouts [n_tokens, readouts] of the step just run, which latches are met now."""
        if self._lines is None:
            return
        lines, self._lines = self._lines, None
        seen = torch.gather(scores[self._tokens], 1, self.columns[lines])
        positions = self._positions.unsqueeze(1)
        met = (self.signs[lines] * seen > self.levels[lines]) & (positions > 0)
        found = torch.where(met, positions, END)
        self.first.scatter_reduce_(0, lines.unsqueeze(1).expand_as(found), found, "amin")

    def _allocate(self, lines: int) -> None:
        shape = (lines, self._shape[1])
        fresh = {
            "first": torch.full(shape, -1, dtype=torch.int64, device=self._device),
            "columns": torch.zeros(shape, dtype=torch.int64, device=self._device),
            "signs": torch.zeros(shape, dtype=torch.float32, device=self._device),
            "levels": torch.zeros(shape, dtype=torch.float32, device=self._device),
        }
        for name, table in fresh.items():
            if self._shape[0]:
                table[: self._shape[0]] = getattr(self, name)
        self.first: torch.Tensor = fresh["first"]
        self.columns: torch.Tensor = fresh["columns"]
        self.signs: torch.Tensor = fresh["signs"]
        self.levels: torch.Tensor = fresh["levels"]
        self._shape = shape
