"""What has been measured so far, one JSON line each, so that a long run goes on where it was interrupted."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Journal:
    """The lines of one run, in memory and, where it has a file, there too as soon as they are there.

    Every line has a `scenario` and a `kind`, and what else `done` may be asked for.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.lines: list[Line] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.lines = _whole_lines(path.read_text(encoding="utf-8"))
            # Whatever was being written when the last run ended is measured again.
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    @classmethod
    def of_parameters(cls, folder: Path, parameters: Mapping[str, Any]) -> "Journal":
        """The journal of a run with these parameters; others have files of their own."""
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()
        return cls(folder / f"{digest[:12]}.jsonl")

    def add(self, line: Line) -> None:
        self.lines.append(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def find(self, **wanted: Any) -> list[Line]:
        """Lines that have these values."""
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]

    def done(self, **wanted: Any) -> bool:
        return bool(self.find(**wanted))

    def finish(self) -> None:
        """Forget the file: the next run with the same parameters begins anew."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _whole_lines(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
