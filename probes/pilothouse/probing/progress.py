"""Telling how far long work has come."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the steps that are done and the steps in all; a step is an item read or a direction fitted."""


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that is told how many further steps are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    return advance
