"""Where Harbor's files lie inside the installed package."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def model_dir() -> Path:
    """The folder with Harbor's Hugging Face files (config, weights, tokenizer)."""
    return _HERE / "model"


def data_dir() -> Path:
    """The folder with the JSONL datasets that the workbench reads."""
    return _HERE / "data"


def vectors_dir() -> Path:
    """The folder with Harbor's steering vectors."""
    return _HERE / "vectors"


def probes_dir() -> Path:
    """The folder with Harbor's probes."""
    return _HERE / "probes"


def saes_dir() -> Path:
    """The folder with Harbor's sparse autoencoders, a folder each."""
    return _HERE / "saes"


def presets_file() -> Path:
    """The combinations of steering and probes that Harbor is served with."""
    return _HERE / "presets.json"


def monitors_file() -> Path:
    """The features of Harbor's sparse autoencoders that are watched like probes."""
    return _HERE / "monitors.json"
