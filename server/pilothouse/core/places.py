"""Where artefacts lie: a path on this machine, ``hf://org/repo[@revision][/path/inside]`` on the Hugging Face hub, or
a URL of any file system that fsspec knows, such as ``s3://bucket/vectors``.

What is elsewhere is fetched into a cache on this machine and read from there.
"""

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from pilothouse.core.hub_places import HubPlace, hub_commit, hub_path, is_on_hub
from pilothouse.core.url_listing import url_state
from pilothouse.core.url_places import url_path
from pilothouse.core.wanted import is_wanted

__all__ = ["MISSING", "HubPlace", "is_on_hub", "is_url", "local_path", "signature"]

MISSING = "missing"
"""The signature of a path on this machine where nothing is."""

_LOCAL = ("file://", "local://")


def is_url(place: str) -> bool:
    """Whether `place` is a URL that fsspec is to open, rather than a path on this machine or a place on the hub."""
    chained = "::" in place
    return not is_on_hub(place) and (chained or ("://" in place and not place.startswith(_LOCAL)))


def local_path(place: str) -> Path:
    """`place` as a path on this machine, fetched into a cache where it lies elsewhere.

    ArtefactError when the hub, its cache or the file system of the URL does not have it or does not let it be read. A
    path on this machine is returned as it is, there or not.
    """
    if is_on_hub(place):
        return hub_path(place)
    return url_path(place) if is_url(place) else _here(place)


def signature(place: str) -> str:
    """A text that changes whenever what lies at `place` may have changed, found without reading or fetching any file.

    Of a path on this machine: names, sizes, times and inodes of the files below, `MISSING` when there is nothing. On
    the hub: the commit. Of a URL: what its file system lists. ArtefactError when the hub or the file system does not
    answer, or has nothing there that is read here.
    """
    if is_on_hub(place):
        return hub_commit(place)
    return url_state(place) if is_url(place) else _state_here(_here(place))


def _here(place: str) -> Path:
    prefix = next((prefix for prefix in _LOCAL if place.startswith(prefix)), "")
    return Path(place.removeprefix(prefix))


def _state_here(path: Path) -> str:
    # Not Path.exists, which raises where a folder above may not be entered.
    if not os.path.exists(path):
        return MISSING
    files = _files_below(path) if path.is_dir() else [path]
    found = [f"{os.path.relpath(file, path)}\0{_stat(file)}" for file in files]
    return sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()


def _files_below(root: Path) -> Iterator[Path]:
    """The files that may be read here, links followed as they are when SAEs are looked for."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # As SAEs are looked for: which of two links to one folder counts must not hang on the order of the disk.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if is_wanted(name))


def _stat(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        # A link to nowhere, or a file that went away since it was listed.
        return MISSING
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
