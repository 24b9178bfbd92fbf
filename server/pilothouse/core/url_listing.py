"""What lies at an fsspec URL now: the files that are read here, and a hash that changes when they do."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

from pilothouse.core.errors import ArtefactError
from pilothouse.core.url_errors import masked, told_of
from pilothouse.core.wanted import WANTED, is_wanted

CHAIN = "::"

Info = Mapping[str, Any]
"""What a file system says of a file: ``name``, ``size``, ``type`` and more."""

_CACHES = frozenset({"blockcache", "cached", "filecache", "simplecache"})

_DEEPEST = 16
"""Folders within folders that are looked into; pages of a web server may lead on for ever."""

_TELLING = frozenset(
    {
        *("etag", "md5", "md5hash", "contentmd5", "contenthash", "checksum", "crc", "crc32c", "digest", "sha", "hex"),
        *("generation", "revision", "rev", "version", "versionid"),
        *("created", "datetime", "lastmodified", "lastwritetime", "modificationtime", "modified", "modifiedtime"),
        *("modify", "mtime", "updated", "ino"),
    }
)
"""What file systems call that which changes with a file's content, in lower case without ``-`` and ``_``. Not all that
they say: times of access change whenever a file is read."""


@dataclass(frozen=True)
class Remote:
    """A URL, the file system of fsspec's that it is on, and where in that it leads."""

    url: str
    filesystem: Any
    root: str

    @property
    def is_web(self) -> bool:
        """Whether folders are pages of links, and names are quoted as in URLs."""
        protocol = self.filesystem.protocol
        return "http" in ((protocol,) if isinstance(protocol, str) else protocol)

    def reads(self, name: str) -> bool:
        """Whether the file `name` below the root, or the root itself for ``""``, is of a format that is read here."""
        return is_wanted(name or (self.root.split("?")[0] if self.is_web else self.root))


def links_of(url: str) -> list[str]:
    """The URLs of a chain such as ``zip://inside::s3://bucket/file.zip``: outermost first; one when it is no chain."""
    return url.split(CHAIN)


def open_url(url: str) -> Remote:
    """The file system of `url`, with nothing remembered of earlier listings; any error that fsspec has."""
    # Not at the top: most starts have no URL.
    from fsspec.core import url_to_fs

    links = links_of(url)
    # Innermost first: an archive is opened by what is listed of the file system that it lies on.
    for start in reversed(range(len(links))):
        filesystem, root = url_to_fs(CHAIN.join(links[start:]))
        filesystem.invalidate_cache()
    return Remote(url, filesystem, root)


def url_state(url: str) -> str:
    """A hash over names, sizes, times and checksums of what is read of `url`; of the archive as a file in a chain.

    ArtefactError when there is nothing to read, or when it cannot be reached.
    """
    _refuse_caches(url)
    with told_of(url):
        target = links_of(url)[-1]
        remote = open_url(target)
        # Whatever is in an archive changes with the archive, which need not be opened for that.
        files = wanted_of(remote) if target == url else _found(remote)
        described = [f"{name}\0{_described(info)}" for name, info in files.items()]
        return sha256("\n".join(sorted(described)).encode(errors="surrogateescape")).hexdigest()


def wanted_of(remote: Remote) -> dict[str, Info]:
    """The files at or below the root that are read here, by name below it: ``""`` for a file that is the root itself.

    ArtefactError when there is none, or when a name would lead out of the folder that it is copied to; and any error of
    the file system.
    """
    wanted = {name: info for name, info in _found(remote).items() if remote.reads(name)}
    if not wanted:
        formats = ", ".join(WANTED)
        raise ArtefactError(f"{masked(remote.url)}: there is nothing that is read here ({formats})")
    for name in wanted:
        if name and ({"", ".", ".."} & set(name.split("/")) or "\0" in name):
            raise _leads_out(remote, name)
    return wanted


def _found(remote: Remote) -> dict[str, Info]:
    filesystem, root = remote.filesystem, remote.root
    if remote.is_web:
        # Whether a URL is a page of links is not told, and a page tells neither sizes nor times.
        names = [root] if remote.reads("") else [str(info["name"]) for info in _walked(remote, root)]
        infos = [filesystem.info(name) for name in names if name == root or is_wanted(name)]
    else:
        info = filesystem.info(root)
        infos = [info] if info["type"] != "directory" else list(_listed(remote))
    return {_below(remote, str(info["name"])): info for info in infos}


def _listed(remote: Remote) -> Iterable[Info]:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(remote.filesystem)
    is_async = issubclass(kind, AsyncFileSystem)
    if (kind._find is AsyncFileSystem._find) if is_async else (kind.find is AbstractFileSystem.find):
        return _walked(remote, remote.root)
    # Object stores list a whole tree in one go.
    found = remote.filesystem.find(remote.root, detail=True)
    return [info for info in found.values() if info["type"] != "directory"]


def _walked(remote: Remote, folder: str, depth: int = 0) -> Iterator[Info]:
    """Files folder by folder. fsspec's own walk passes over folders that fail, and would tell of half of the files."""
    for info in remote.filesystem.ls(folder, detail=True):
        name = str(info["name"])
        last = name.rstrip("/").rsplit("/", 1)[-1]
        if info["type"] != "directory":
            yield info
        elif (unquote(last) if remote.is_web else last) in (".", ".."):
            # On a page it is a link to where we come from; as the name of a folder it is a trap.
            if not remote.is_web:
                raise _leads_out(remote, name)
        elif depth < _DEEPEST and name.strip("/") != folder.strip("/"):
            yield from _walked(remote, name, depth + 1)


def _below(remote: Remote, name: str) -> str:
    root, name = remote.root.strip("/"), name.lstrip("/")
    if name.rstrip("/") == root:
        return ""
    if root and not name.startswith(f"{root}/"):
        raise _leads_out(remote, name)
    below = name[len(root) + 1 if root else 0 :]
    return unquote(below) if remote.is_web else below


def _leads_out(remote: Remote, name: str) -> ArtefactError:
    return ArtefactError(f"{masked(remote.url)}: {masked(name)!r}, which is listed there, leads out of the folder")


def _described(info: Info) -> str:
    telling = {key: str(value) for key, value in info.items() if _plain(key) in _TELLING and value is not None}
    return f"{info.get('size')} {sorted(telling.items())}"


def _plain(key: str) -> str:
    return key.lower().replace("-", "").replace("_", "")


def _refuse_caches(url: str) -> None:
    for link in links_of(url):
        protocol = link.split("://", 1)[0]
        if protocol in _CACHES:
            raise ArtefactError(
                f"{masked(url)}: {protocol!r} would hide what changes, and files are cached here anyway: leave it out"
            )
