"""No text is stored that the hook did not see, and none on which it failed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records_support.outcomes import expected, scored

from pilothouse.core.config import RecordsConfig
from pilothouse.core.errors import StartupError
from pilothouse.records.redaction import Redaction, load_redaction
from pilothouse.records.rows import make_row
from pilothouse.records.service import check_records, open_records
from pilothouse.records.store import RecordStore

TEXT = {"prompts": ["my name is Ann"], "completions": ["hello Ann", "hi \ud800 \x00"]}


def without_ann(text: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(text).replace("Ann", "***"))  # type: ignore[no-any-return]


def changes_in_place(text: dict[str, Any]) -> dict[str, Any]:
    text["prompts"].clear()
    return text


def fails(text: dict[str, Any]) -> None:
    raise ValueError(f"cannot redact {text}")


def leaves(text: dict[str, Any]) -> None:
    raise SystemExit(text)


def no_json(text: dict[str, Any]) -> Any:
    return {"text": object()}


def no_number(text: dict[str, Any]) -> Any:
    return {"text": float("nan")}


def nothing(text: dict[str, Any]) -> None:
    return None


async def too_late(text: dict[str, Any]) -> dict[str, Any]:
    return text


BROKEN = {"text": None, "text_error": "redaction failed"}


@pytest.mark.parametrize(
    ("hook", "kept"),
    [
        (None, {"text": TEXT}),
        (without_ann, {"text": {"prompts": ["my name is ***"], "completions": ["hello ***", "hi \ud800 \x00"]}}),
        (changes_in_place, {"text": {**TEXT, "prompts": []}}),
        (nothing, {"text": None}),
        (fails, BROKEN),
        (leaves, BROKEN),
        (no_json, BROKEN),
        (no_number, BROKEN),
    ],
)
def test_what_is_stored_of_a_text(store: RecordStore, hook: Callable[..., Any] | None, kept: dict[str, Any]) -> None:
    request = scored(1, 0.5, text=TEXT)
    before = json.dumps(TEXT)
    store.write([make_row(request, Redaction(hook))])
    assert store.find(request.response_id) == expected(request, **kept)
    assert json.dumps(TEXT) == before, "the other takers of a request see it as it was"


def test_without_texts_none_is_stored(store: RecordStore) -> None:
    with_text, without = scored(1, 0.5, text=TEXT), scored(2, 0.5)
    store.write([make_row(with_text), make_row(without, Redaction(fails))])
    assert store.find(with_text.response_id) == expected(with_text)
    assert store.find(without.response_id) == expected(without, text=None)


def test_a_failure_is_logged_once_and_says_nothing_of_the_text(caplog: pytest.LogCaptureFixture) -> None:
    redaction = Redaction(fails)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert redaction(TEXT) == BROKEN
    assert [record.getMessage().count("ValueError") for record in caplog.records] == [1]
    assert "Ann" not in caplog.text


@pytest.mark.parametrize("keeps", [True, False])
def test_a_server_stores_texts_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool) -> None:
    (tmp_path / "hooks_of_mine.py").write_text("class Hooks:\n    def mask(text):\n        return list(text)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RecordsConfig(
        f"sqlite:///{tmp_path}/r.sqlite", text=keeps, redact="hooks_of_mine:Hooks.mask" if keeps else None
    )
    check_records(config)
    records = open_records(config)
    assert records is not None
    request = scored(1, 0.5, text=TEXT)
    records.writer.observe(request)
    assert records.writer.flush(10)
    more = {"text": ["prompts", "completions"]} if keeps else {}
    assert records.store.find(request.response_id) == expected(request, **more)
    records.writer.close()


@pytest.mark.parametrize(
    "name", ["json", "json:", ":dumps", "json:nothing", "no_such_module:f", "json:__name__", f"{__name__}:too_late"]
)
def test_hooks_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--redact"):
        load_redaction(name)
    config = RecordsConfig(f"sqlite:///{tmp_path}/r.sqlite", text=True, redact=name)
    for start in (check_records, open_records):
        with pytest.raises(StartupError, match="--redact"):
            start(config)
    assert not list(tmp_path.iterdir())


def test_no_url_is_no_store() -> None:
    check_records(RecordsConfig())
    assert open_records(RecordsConfig()) is None
