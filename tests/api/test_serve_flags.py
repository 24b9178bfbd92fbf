"""Flags of `pilothouse serve` that reach the API process by its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pilothouse.cli.main import app
from pilothouse.core.config import CONFIG_ENV, ServerConfig
from pilothouse.core.errors import StartupError
from pilothouse.engine import launch


@pytest.mark.parametrize(("flags", "kept"), [([], 10_000), (["--max-results", "5"], 5), (["--max-results", "0"], 0)])
def test_how_many_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], kept: int
) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")
    served: list[list[str]] = []

    def serve(arguments: list[str], *rest: Any) -> None:
        served.append(arguments)

    monkeypatch.setattr(launch, "serve", serve)
    result = CliRunner().invoke(app, ["serve", str(tmp_path), *flags], catch_exceptions=False)
    assert result.exit_code == 0
    assert ServerConfig.from_environment().max_results == kept
    assert served == [[str(tmp_path)]], "the flag is Pilothouse's own"


def test_fewer_than_none_are_refused(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["serve", str(tmp_path), "--max-results", "-1"]).exit_code == 2


@pytest.mark.parametrize(("given", "kept"), [("-", "-"), ("requests.log", "HERE/requests.log"), (None, None)])
def test_where_log_lines_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str | None
) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "serve", lambda *arguments: None)
    flags = [] if given is None else ["--request-log", given]
    assert CliRunner().invoke(app, ["serve", str(tmp_path), *flags], catch_exceptions=False).exit_code == 0
    assert ServerConfig.from_environment().request_log == (kept and kept.replace("HERE", str(tmp_path)))


@pytest.mark.parametrize("flags", [("--request-log", "missing/log"), ("--otlp-endpoint", "localhost:4317")])
def test_where_nothing_can_go_is_said_before_the_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, str]
) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "serve", lambda *arguments: pytest.fail("started"))
    with pytest.raises(StartupError, match=flags[0]):
        CliRunner().invoke(app, ["serve", str(tmp_path), *flags], catch_exceptions=False)
