"""The work file of a dose run: what was measured so far, a line each, so that an interrupted run goes on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.unfinished import require_same_run, write_key

Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Items of one measurement, all or some of them: answered prompts and predicted texts, both in order. JSON."""

    items: list[Record] = field(default_factory=list)
    neutral: list[Record] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items) + len(self.neutral)


class WorkFile:
    """JSON lines: first what is measured (`key`), then items of the vector or a control at a strength, in pieces.

    A run may go on with another grid of strengths or more controls, not with another vector or other data.
    """

    def __init__(self, path: Path, lines: list[Record]) -> None:
        self.path = path
        self._measured: dict[tuple[float, int | None], Measured] = {}
        for line in lines:
            self._add(line["strength"], line["control"], Measured(line["items"], line["neutral"]))

    @classmethod
    def open(cls, path: Path, key: Mapping[str, Any], resume: bool) -> Self:
        """The work file at `path`, begun anew unless `resume` and it holds some; ArtefactError when it has another key.

        A last line that was cut off while it was written is dropped.
        """
        lines = _whole_lines(path) if resume else []
        if len(lines) < 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_key(path, key)
            return cls(path, [])
        require_same_run(path, lines[0], key)
        # Rewritten, so that what is appended does not join a line that was cut off.
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return cls(path, lines[1:])

    def get(self, strength: float, control: int | None) -> Measured:
        """What there is of one measurement, perhaps nothing."""
        return self._measured.get((strength, control), Measured())

    def put(self, strength: float, control: int | None, piece: Measured) -> None:
        """Keep the next items of a measurement, in the file before anything else happens."""
        line = {"strength": strength, "control": control, "items": piece.items, "neutral": piece.neutral}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._add(strength, control, piece)

    def remove(self) -> None:
        """Delete the file: the run is complete."""
        self.path.unlink(missing_ok=True)

    def _add(self, strength: float, control: int | None, piece: Measured) -> None:
        measured = self._measured.setdefault((strength, control), Measured())
        measured.items.extend(piece.items)
        measured.neutral.extend(piece.neutral)


def _whole_lines(path: Path) -> list[Record]:
    if not path.exists():
        return []
    try:
        *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [json.loads(line) for line in whole]
        if not all(isinstance(line, dict) for line in lines) or not all(
            {"strength", "control", "items", "neutral"} <= line.keys() for line in lines[1:]
        ):
            raise ValueError("not lines of a dose run")
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} is not the work file of a dose run ({error}): --no-resume starts over") from None
    return lines
