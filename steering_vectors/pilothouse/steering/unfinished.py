"""Unfinished runs on disk: what a run is for lies beside what it has done, so that no other run goes on with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilothouse.core.errors import ArtefactError


def write_key(path: Path, key: Mapping[str, Any]) -> None:
    """Keep what a run is for. `key` is JSON."""
    path.write_text(json.dumps(key) + "\n", encoding="utf-8")


def require_same_key(path: Path, key: Mapping[str, Any]) -> None:
    """ArtefactError unless the file at `path` holds `key`, or cannot be read."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}): --no-resume starts over") from None
    require_same_run(path.parent, held, key)


def require_same_run(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ArtefactError, with what differs, unless the unfinished run at `path` is the one that is asked for."""
    wanted = json.loads(json.dumps(wanted))
    if changed := sorted(name for name in {*held, *wanted} if held.get(name) != wanted.get(name)):
        raise ArtefactError(
            f"{path} holds an unfinished run with another {', '.join(changed)}: finish that one, or start over "
            "with --no-resume"
        )
