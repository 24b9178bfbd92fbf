"""The manifest is whole, every state in it has its reason, and the README shows it."""

from __future__ import annotations

import pytest
from matrix_support.manifest import Cell, Key, load
from matrix_support.table import README, with_tables


def test_every_cell_stands_in_the_manifest_and_no_other(collected: dict[Key, str], complete: bool) -> None:
    known = load()
    missing = [key for key in collected if key not in known]
    assert not missing[:3], f"{len(missing)} cells are missing: run `make matrix`"
    if complete:
        assert not set(known) - set(collected), "cells in the manifest that no test makes"


def test_no_cell_is_skipped_or_refused_without_a_reason() -> None:
    complaints = {key: said for key, cell in load().items() if (said := cell.complaint())}
    assert not complaints


@pytest.mark.parametrize("cell", [Cell("n/a"), Cell("refused", " "), Cell("fail", "it fails")])
def test_a_cell_without_a_reason_would_be_found(cell: Cell) -> None:
    assert cell.complaint()


def test_the_readme_shows_the_manifest() -> None:
    shown = README.read_text(encoding="utf-8")
    assert shown == with_tables(shown, load()), "run `make matrix`"
