"""The work file of a dose run: what was measured so far, a line each, so that an interrupted run goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pilothouse.core.errors import ArtefactError

Record = dict[str, Any]


class WorkFile:
    """JSON lines: first what is measured (`key`), then one record for each vector or control at each strength.

    A run may go on with another grid of strengths or more controls, not with another vector or other data.
    """

    def __init__(self, path: Path, records: list[Record]) -> None:
        self.path = path
        self._records = {_place(record): record for record in records}

    @classmethod
    def open(cls, path: Path, key: Mapping[str, Any], resume: bool) -> Self:
        """The work file at `path`, begun anew unless `resume` and it is there; ArtefactError when it has another key.

        A last line that was cut off while it was written is dropped.
        """
        wanted = json.loads(json.dumps(key))
        lines = _whole_lines(path) if resume else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
            return cls(path, [])
        held, *records = lines
        if changed := sorted(name for name in {*held, *wanted} if held.get(name) != wanted.get(name)):
            raise ArtefactError(
                f"{path} holds an unfinished run with another {', '.join(changed)}: finish that one, or start over "
                "with --no-resume"
            )
        # Rewritten, so that what is appended does not join a line that was cut off.
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return cls(path, records)

    def get(self, strength: float, control: int | None) -> Record | None:
        """The record of one measurement; None when it is still to be made."""
        return self._records.get((strength, control))

    def put(self, record: Record) -> None:
        """Keep a measurement, in the file before anything else happens."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._records[_place(record)] = record

    def remove(self) -> None:
        """Delete the file: the run is complete."""
        self.path.unlink(missing_ok=True)


def _place(record: Record) -> tuple[float, int | None]:
    return record["strength"], record["control"]


def _whole_lines(path: Path) -> list[Record]:
    if not path.exists():
        return []
    try:
        *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [json.loads(line) for line in whole]
        if not all(isinstance(line, dict) for line in lines) or not all(
            {"strength", "control"} <= line.keys() for line in lines[1:]
        ):
            raise ValueError("not lines of a dose run")
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} is not the work file of a dose run ({error}): --no-resume starts over") from None
    return lines
