"""The manifest: of every cell of the matrix whether it passes, is refused, or does not apply, and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).parents[1] / "matrix" / "manifest.json"

State = Literal["pass", "refused", "n/a", "fail"]
STATES: tuple[State, ...] = ("pass", "refused", "n/a", "fail")
GROUPS = ("ways", "requests", "routes", "architectures", "faults")


@dataclass(frozen=True, order=True)
class Key:
    """Where a cell stands: a table, a row of it, and a column."""

    group: str
    row: str
    column: str


@dataclass(frozen=True)
class Cell:
    """What a run found. reason: why it is refused or does not apply, in the words of whoever says so."""

    state: State
    reason: str = ""

    def complaint(self) -> str:
        """What is wrong with such a cell in a manifest; empty when nothing is."""
        if self.state not in ("pass", "refused", "n/a"):
            return f"its state is {self.state!r}"
        if self.state != "pass" and not self.reason.strip():
            return f"it is {self.state} without a reason"
        return ""


Manifest = dict[Key, Cell]


def load(file: Path = FILE) -> Manifest:
    """The manifest in `file`; empty when there is none yet."""
    if not file.exists():
        return {}
    entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return {Key(e["group"], e["row"], e["column"]): Cell(e["state"], e["reason"]) for e in entries}


def save(cells: Manifest, vllm: str, file: Path = FILE) -> None:
    """Write `cells`, in an order that does not depend on who ran when."""
    entries = [asdict(key) | asdict(cells[key]) for key in sorted(cells)]
    file.write_text(json.dumps({"vllm": vllm, "cells": entries}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
