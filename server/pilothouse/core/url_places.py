"""The cache of what was fetched from fsspec URLs: a folder for each URL, and in it one for each state of the remote.

A state is there whole or not at all. It holds the path of the URL, as the names of folders tell what an SAE is.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pilothouse.core.errors import ArtefactError
from pilothouse.core.url_errors import masked, told_of
from pilothouse.core.url_listing import CHAIN, links_of, open_url, url_state, wanted_of

_KEPT = 2
_ATTEMPTS = 3
_ABANDONED = 24 * 3600.0
"""Seconds after which what a process that died had begun to fetch is removed."""


def url_path(url: str) -> Path:
    """What lies at `url` as a path in the cache, fetched unless this state of it was fetched before.

    ArtefactError when the URL is of no file system that can be opened here, has nothing that is read here, cannot be
    reached or changes all the while, and when the cache cannot be written.
    """
    with told_of(url):
        inside = _inside(url)
    # The hash of the whole: two users of one address may see different files.
    shelf = _cache() / sha256(url.encode(errors="surrogateescape")).hexdigest()[:32]
    for _ in range(_ATTEMPTS):
        state = url_state(url)
        with told_of(url):
            if _is_fetched(url, shelf, state, inside):
                _remove_old(shelf, shelf / state)
                return shelf / state / inside
    raise ArtefactError(f"{masked(url)}: it changes while it is being fetched: try again later")


def _is_fetched(url: str, shelf: Path, state: str, inside: Path) -> bool:
    """Whether the state is in the cache, fetched now where need be; False when the remote changed meanwhile."""
    home = shelf / state
    if home.is_dir():
        # The times of the folders say which states were used last. A cache that is only read has no need of them.
        with suppress(OSError):
            os.utime(home)
        return True
    with _partial(shelf) as partial:
        _fetch(url, partial / inside)
        if url_state(url) != state:
            return False
        _rename_new(partial, home)
    return True


def _fetch(url: str, target: Path) -> None:
    remote = open_url(url)
    wanted = wanted_of(remote)
    paths = [target / name if name else target for name in wanted]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    # All at once: file systems that can fetch several at a time do.
    remote.filesystem.get([str(info["name"]) for info in wanted.values()], [str(path) for path in paths])
    for path, info in zip(paths, wanted.values(), strict=True):
        size, fetched = info.get("size"), path.stat().st_size
        # Some end a broken transfer as if the file were whole. Web servers give the size of what they compress.
        if size is not None and size != fetched and not remote.is_web:
            raise OSError(f"{info['name']} ended after {fetched} of {size} bytes")


@contextmanager
def _partial(shelf: Path) -> Iterator[Path]:
    """A folder beside the states that is gone afterwards, unless it was renamed."""
    partial = shelf / f".{uuid4().hex}.partial"
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename_new(partial: Path, home: Path) -> None:
    try:
        partial.rename(home)
    except OSError:
        # Another process was faster, and its copy is as good.
        if not home.is_dir():
            raise


def _remove_old(shelf: Path, current: Path) -> None:
    """Keep the states that were used last; the caller's is one of them.

    SAEs read rows from their files for as long as they are served, but by maps that were made when they were loaded,
    and a map outlives the name of its file. Only the digest opens a file by its path again, and it is taken when an SAE
    is loaded. So old states may go while they are served; one beside the current stays for a process that is about to
    load it.
    """
    with suppress(OSError):
        folders = {path: path.stat().st_mtime for path in shelf.iterdir()}
        states = sorted((path for path in folders if not path.name.startswith(".")), key=lambda path: -folders[path])
        others = [path for path in states if path != current]
        for path in others[_KEPT - 1 :]:
            # Renamed first: a folder that is half removed must not look like a state.
            gone = path.with_name(f".{uuid4().hex}.partial")
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        for path in folders.keys() - set(states):
            if time.time() - folders[path] > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _inside(url: str) -> Path:
    """The path of the URL without host and user; for the root of an archive, the archive's name without its suffix."""
    first, last = links_of(url)[0], links_of(url)[-1]
    parts = _parts(first)
    if not parts and CHAIN in url:
        parts = [Path(part).stem for part in _parts(last)[-1:]]
    if {".", ".."} & set(parts) or "\0" in url:
        raise ArtefactError(f"{masked(url)}: a path with '.' or '..' in it is not taken")
    return Path(*parts)


def _parts(link: str) -> list[str]:
    protocol, separator, rest = link.partition("://")
    if not separator:
        # A path on this machine, or the bare name of a file system.
        rest = link if "/" in link or "." in link else ""
    elif protocol in ("http", "https"):
        rest = unquote(urlsplit(link).path)
    else:
        host, slash, path = rest.partition("/")
        rest = host.rpartition("@")[2] + slash + path
    return [part for part in rest.split("/") if part]


def _cache() -> Path:
    if given := os.environ.get("PILOTHOUSE_CACHE"):
        return Path(os.path.abspath(given))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "pilothouse", "places")
