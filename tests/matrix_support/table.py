"""The README's tables, made of the manifest: `python -m matrix_support.table` with tests/ on the path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from matrix_support.manifest import GROUPS, Cell, Key, Manifest, load

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"

TITLES = {
    "ways": "Ways to serve",
    "requests": "Kinds of requests",
    "routes": "Routes",
    "architectures": "Architectures",
    "faults": "Faults",
}
SIGNS = {"pass": "✓", "refused": "refused", "n/a": "n/a"}


def tables(cells: Manifest) -> str:
    """Every table in Markdown. A cell that does not pass points to its reason below the table."""
    return "\n".join(line for group in GROUPS for line in _table(group, cells))


def _table(group: str, cells: Manifest) -> Iterator[str]:
    ours = {key: cell for key, cell in cells.items() if key.group == group}
    if not ours:
        return
    rows, columns = sorted({key.row for key in ours}), sorted({key.column for key in ours})
    notes: list[str] = []
    states = Counter(SIGNS.get(cell.state, cell.state) for cell in ours.values())
    counts = ", ".join(f"{number} {sign}" for sign, number in states.most_common())
    yield f"\n<details><summary><b>{TITLES[group]}</b>: {len(rows)} rows, {counts}</summary>\n"
    yield f"| | {' | '.join(columns)} |"
    yield f"|---{'|:-:' * len(columns)}|"
    for row in rows:
        shown = [_show(ours.get(Key(group, row, column)), notes) for column in columns]
        yield f"| {row} | {' | '.join(shown)} |"
    if notes:
        yield ""
        yield from (f"{number}. {note}" for number, note in enumerate(notes, 1))
    yield "\n</details>"


def _show(cell: Cell | None, notes: list[str]) -> str:
    if cell is None:
        return ""
    if cell.state == "pass":
        return SIGNS["pass"]
    reason = " ".join(cell.reason.split()).replace("|", "\\|")
    if reason not in notes:
        notes.append(reason)
    return f"{SIGNS.get(cell.state, cell.state)} ({notes.index(reason) + 1})"


def with_tables(readme: str, cells: Manifest) -> str:
    """The text of the README with the tables between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"README.md has no place for the matrix: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables(cells)}\n\n{END}{after}"


def update_readme(cells: Manifest) -> None:
    """Write the README's tables again."""
    README.write_text(with_tables(README.read_text(encoding="utf-8"), cells), encoding="utf-8")


if __name__ == "__main__":
    update_readme(load())
