"""A worker into which faults can be put, to see that they are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pilothouse.engine.worker import SteeringWorker

FAULTS: dict[str, Callable[[Any], None]] = {}


def fault(make: Callable[[Any], None]) -> Callable[[Any], None]:
    FAULTS[make.__name__] = make
    return make


@fault
def nothing_is_edited(board: Any) -> None:
    board._rows.write = lambda rows: None


@fault
def everyone_is_edited(board: Any) -> None:
    write = board._rows.write

    def all_the_same(rows: Any) -> None:
        write(rows * 0 + rows.max())

    board._rows.write = all_the_same


@fault
def edits_land_one_token_late(board: Any) -> None:
    write = board._rows.write

    def late(rows: Any) -> None:
        shifted = rows.copy()
        shifted[1:] = rows[:-1]
        write(shifted)

    board._rows.write = late


@fault
def one_edit_is_left_out(board: Any) -> None:
    board.sites[max(layer for layer, site in board.sites.items() if site.edits.any())].edits.zero_()


@fault
def steps_are_left_out(board: Any) -> None:
    board._gains.write = lambda gains: None


@fault
def scores_are_not_written(board: Any) -> None:
    for site in board.sites.values():
        site.read = lambda stream: None


@fault
def one_layer_is_not_read(board: Any) -> None:
    board.sites[1].read = lambda stream: None


class FaultyWorker(SteeringWorker):
    """Eager engines only: a compiled graph no longer asks the sites."""

    def break_it(self, name: str) -> None:
        """Put the fault called `name` into this worker."""
        board = self.model_runner.pilothouse_board
        filled = (board._rows, board._gains)
        self._whole = [(thing, dict(vars(thing))) for thing in (board, *filled, *board.sites.values())]
        self._banks = [(site.edits, site.edits.clone()) for site in board.sites.values()]
        FAULTS[name](board)

    def mend_it(self) -> None:
        """Take it out again."""
        for thing, attributes in self._whole:
            for name in set(vars(thing)) - set(attributes):
                delattr(thing, name)
        for bank, content in self._banks:
            bank.copy_(content)
