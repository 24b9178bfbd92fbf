"""The formats that are known, and which of them lies at a path: decided by the card in a file and by files' names."""

import os
from collections.abc import Iterator
from pathlib import Path

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae_formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope2,
    goodfire,
    llama_scope,
    native,
    qwen_scope,
    saelens,
    sparsify,
)
from pilothouse.steering.sae_formats.base import SaeFormat, Source
from pilothouse.steering.sae_formats.sidecar import read_sidecar

FORMATS: tuple[SaeFormat, ...] = (
    native.FORMAT,
    saelens.FORMAT,
    gemma_scope.FORMAT,
    gemma_scope2.FORMAT,
    llama_scope.FORMAT,
    goodfire.FORMAT,
    qwen_scope.FORMAT,
    dictionary_learning.FORMAT,
    sparsify.FORMAT,
)
WORK_MARK = "pilothouse-sae.txt"
"""The file by which an unfinished training's folder is known; the SAE in it is a draft."""

WEIGHTS_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_DEPTH = 6
_FILES_SHOWN = 8

Found = tuple[SaeFormat, Source]


def detect(path: Path, name: str | None = None) -> list[Found]:
    """Every SAE at `path` itself, a file or a folder; none when no format knows it. ArtefactError for a bad sidecar."""
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    found = _in(path, name, last_resort=False) or _in(path, name, last_resort=True)
    if not found and path.is_file():
        # A file that was renamed, of the format that its sidecar names.
        source = Source(path, path.parent, read_sidecar(path.parent), name)
        found = [(a_format, source) for a_format in FORMATS if a_format.key == source.sidecar.format]
    return found


def detect_one(path: Path, name: str | None = None) -> Found:
    """The one SAE at `path`; ArtefactError says what was found instead, and which formats there are."""
    if not path.exists():
        raise ArtefactError("there is no such file or folder")
    found = detect(path, name)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{source.weights.name} ({a_format.title})" for a_format, source in found[:_FILES_SHOWN])
        raise ArtefactError(f"it holds {len(found)} SAEs: {several}; name one of the files")
    raise ArtefactError(f"no known format of SAE: {_listed(path)}; those that are known: {known_formats()}")


def detect_below(root: Path) -> Iterator[Found]:
    """The SAEs of a folder: its own, else those of its subfolders, some levels down; unfinished ones left out.

    Files with a card of ours lie anywhere, so subfolders beside them are looked into too.
    """
    depth = len(root.parts)
    seen: set[Path] = set()
    # Links are followed, since people collect SAEs by them.
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        if WORK_MARK in files or here.resolve() in seen:
            subfolders.clear()
            continue
        seen.add(here.resolve())
        found = detect(here)
        yield from found
        is_an_sae = any(not a_format.by_card for a_format, _ in found)
        if is_an_sae or len(here.parts) - depth >= _DEPTH:
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def has_weights(root: Path) -> bool:
    """Whether any file below `root` could hold weights."""
    return any(file.endswith(WEIGHTS_SUFFIXES) for _, _, files in os.walk(root) for file in files)


def known_formats() -> str:
    """Every format's name and files, for a message."""
    return "; ".join(f"{a_format.title} ({a_format.layout})" for a_format in FORMATS)


def _in(path: Path, name: str | None, *, last_resort: bool) -> list[Found]:
    located = [
        (a_format, Source(weights, folder, read_sidecar(folder), name))
        for a_format in FORMATS
        if a_format.last_resort == last_resort
        for folder, weights in a_format.find(path)
    ]
    return [
        (a_format, source)
        for a_format, source in located
        if source.sidecar.format in (None, a_format.key) and (a_format.by_card or not native.is_native(source.weights))
    ]


def _listed(path: Path) -> str:
    if path.is_file():
        why = native.why_not(path) if path.suffix == native.SUFFIX else None
        return f"the file is called {path.name}" + (f" and {why}" if why else "")
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    more = len(names) - _FILES_SHOWN
    shown = ", ".join(names[:_FILES_SHOWN]) or "nothing"
    return f"the folder holds {shown}" + (f" and {more} more" if more > 0 else "")
