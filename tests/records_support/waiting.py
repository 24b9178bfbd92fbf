"""Waiting for what another thread does."""

import time
from collections.abc import Callable

PATIENCE = 30.0


def wait_until(done: Callable[[], bool]) -> None:
    """Return as soon as it is so; the test fails if it never is."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
