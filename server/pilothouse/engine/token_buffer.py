"""Buffers of numbers by token that the host fills before a step."""

from typing import Any

import numpy.typing as npt
import torch


class TokenBuffer:
    """`buffer` [max_tokens, ...], whose first numbers are those of a step's tokens; all others are 0, since padding
    takes what is behind them."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer
        # On the CPU NumPy writes into it: while nothing of either is in the processor's cache, as between two steps, a
        # call of PyTorch takes five times as long.
        self._host: npt.NDArray[Any] | None = buffer.numpy() if buffer.device.type == "cpu" else None
        self._n = 0
        """Of how many tokens it has numbers."""

    def write(self, numbers: npt.NDArray[Any]) -> None:
        """Take in the numbers [n_tokens, ...] of a step."""
        self.clear(len(numbers))
        self._n = len(numbers)
        if self._host is not None:
            self._host[: self._n] = numbers
        else:
            # Fresh pinned memory, which PyTorch keeps until the copy is done: steps that run ahead never share it.
            self._buffer[: self._n].copy_(torch.from_numpy(numbers).pin_memory(), non_blocking=True)

    def clear(self, kept: int = 0) -> None:
        """Forget the numbers of all but the first `kept` tokens."""
        if self._n <= kept:
            return
        if self._host is not None:
            self._host[kept : self._n] = 0
        else:
            self._buffer[kept : self._n].zero_()
        self._n = kept
