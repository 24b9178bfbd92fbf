"""Values of the JSON that lies beside an SAE's weights, checked; every complaint begins with the file and the key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilothouse.core.artefact import parse_json, read_artefact
from pilothouse.core.errors import ArtefactError


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; ArtefactError when the file cannot be read or holds anything else."""
    content = parse_json(read_artefact(path))
    if not isinstance(content, dict):
        raise ArtefactError(f"{path.name} must be a JSON object")
    return content


def read_size(cfg: Mapping[str, Any], key: str, where: str) -> int:
    """A positive whole number that must be there."""
    value = cfg.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArtefactError(f"{where}: {key} must be a positive whole number, not {value!r}")
    return value


def read_flag(cfg: Mapping[str, Any], key: str, where: str, *, default: bool) -> bool:
    """True or false; `default` when the key is absent or null."""
    value = cfg.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ArtefactError(f"{where}: {key} must be true or false, not {value!r}")
    return value


def read_text(cfg: Mapping[str, Any], key: str, where: str) -> str | None:
    """A string; None when the key is absent or null."""
    value = cfg.get(key)
    if value is not None and not isinstance(value, str):
        raise ArtefactError(f"{where}: {key} must be a string, not {value!r}")
    return value


def read_factor(value: object, what: str) -> float | None:
    """A factor by which activations were multiplied: None, or a positive number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ArtefactError(f"{what} must be a positive number, not {value!r}")
    return float(value)
