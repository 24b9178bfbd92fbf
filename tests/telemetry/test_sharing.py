"""A process's file for the others: written whole, and never in anybody's way."""

import json
import logging
import os
from pathlib import Path

import pytest

from pilothouse.telemetry.sharing import Sharing


def test_others_read_what_was_written_last(tmp_path: Path) -> None:
    said: list[int] = []
    sharing = Sharing(tmp_path, lambda: said)
    for number in range(3):
        said.append(number)
        sharing.write()
        (path,) = tmp_path.iterdir()
        assert json.loads(path.read_text()) == said
    assert path.name == f"pilothouse_{os.getpid()}.json"
    assert sharing.others() == [], "its own is none of the others'"
    path.rename(tmp_path / "pilothouse_0.json")
    assert sharing.others() == [[0, 1, 2]]


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    sharing = Sharing(tmp_path, lambda: 1)
    sharing.write()
    (path,) = tmp_path.iterdir()
    path.unlink()
    sharing.write()
    assert not path.exists()


def test_a_folder_that_takes_nothing_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = [0]
    sharing = Sharing(tmp_path / "gone", lambda: said)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            said[0] += 1
            sharing.write()
    assert caplog.text.count("metrics cannot be shared") == 1
    (tmp_path / "gone").mkdir()
    sharing.write()
    assert len(list((tmp_path / "gone").iterdir())) == 1, "it is tried again"


def test_the_last_is_written_at_the_end(tmp_path: Path) -> None:
    sharing = Sharing(tmp_path, lambda: "last")
    sharing.start()
    sharing.stop()
    assert [json.loads(path.read_text()) for path in tmp_path.iterdir()] == ["last"]
