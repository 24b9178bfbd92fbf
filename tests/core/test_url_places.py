"""Places at fsspec URLs, without the network: in memory, in archives, and on a web server on this machine."""

import functools
import http.server
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from pilothouse.core import url_places
from pilothouse.core.artefact import parse_artefact, write_artefact
from pilothouse.core.errors import ArtefactError
from pilothouse.core.places import is_url, local_path, signature

VECTORS = "memory://bucket/vectors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTHOUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of vectors, a file in a subfolder, and one that is not read."""
    folder = tmp_path / "files"
    for name in ("happy", "sad"):
        rows = {"layer.3": np.arange(4, dtype=np.float32) + len(name)}
        write_artefact(folder / f"{name}.safetensors", rows, {"name": name})
    (folder / "sae").mkdir()
    (folder / "sae" / "cfg.json").write_text("{}")
    (folder / "README.md").write_text("words")
    return folder


@pytest.fixture
def memory(files: Path) -> Iterator[MemoryFileSystem]:
    filesystem = MemoryFileSystem()
    filesystem.put(f"{files}/", "/bucket/vectors", recursive=True)
    yield filesystem
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read of the memory's file system, as they are."""
    asked: list[str] = []
    get_file = MemoryFileSystem.get_file

    def counted(self: MemoryFileSystem, rpath: str, lpath: str, **options: Any) -> None:
        asked.append(rpath)
        get_file(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    return asked


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def readable(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in below(folder).items() if name != "README.md"}


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in below(folder).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/vectors", True),
        ("zip://a::/somewhere/b.zip", True),
        ("zip::b.zip", True),
        ("file:///somewhere", False),
        ("local:///somewhere", False),
        ("/somewhere", False),
        ("a:b", False),
        ("hf://org/vectors", False),
    ],
)
def test_which_places_are_urls(place: str, url: bool) -> None:
    assert is_url(place) == url


def test_a_file_url_is_the_path_itself(files: Path, cache: Path) -> None:
    place = f"file://{files}"
    assert local_path(place) == files
    assert signature(place) == signature(str(files))
    assert not cache.exists()


def test_a_folder_is_fetched(files: Path, memory: MemoryFileSystem, cache: Path) -> None:
    path = local_path(VECTORS)
    assert below(path) == readable(files)
    assert path.parts[-2:] == ("bucket", "vectors")
    assert path.is_relative_to(cache)
    assert parse_artefact((path / "happy.safetensors").read_bytes()).card == {"name": "happy"}


@pytest.mark.parametrize("slash", ["", "/"])
def test_one_file_is_fetched(slash: str, files: Path, memory: MemoryFileSystem, fetched: list[str]) -> None:
    path = local_path(f"{VECTORS}/happy.safetensors{slash}")
    assert path.name == "happy.safetensors"
    assert path.read_bytes() == (files / "happy.safetensors").read_bytes()
    assert fetched == ["/bucket/vectors/happy.safetensors"]


def test_the_cache_is_where_the_environment_says(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILOTHOUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert local_path(VECTORS).is_relative_to(tmp_path / "xdg" / "pilothouse" / "places")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path(VECTORS).is_relative_to(tmp_path / "home" / ".cache" / "pilothouse" / "places")


def test_a_state_is_fetched_once(memory: MemoryFileSystem, fetched: list[str]) -> None:
    first, state = local_path(VECTORS), signature(VECTORS)
    assert len(fetched) == 3
    assert local_path(VECTORS) == first
    memory.pipe("/bucket/vectors/notes.txt", b"not read here")
    assert signature(VECTORS) == state
    assert local_path(VECTORS) == first
    assert len(fetched) == 3


def test_a_new_state_is_seen_and_fetched(memory: MemoryFileSystem, files: Path) -> None:
    first, states = local_path(VECTORS), [signature(VECTORS)]
    content = (files / "sad.safetensors").read_bytes()
    changes: list[Callable[[], object]] = [
        lambda: memory.pipe("/bucket/vectors/happy.safetensors", content),
        lambda: memory.pipe("/bucket/vectors/sae/new.safetensors", content),
        lambda: memory.rm("/bucket/vectors/sad.safetensors"),
    ]
    for change in changes:
        change()
        states.append(signature(VECTORS))
    assert len(set(states)) == 4
    path = local_path(VECTORS)
    assert path != first
    assert below(path) == {"happy.safetensors": content, "sae/new.safetensors": content, "sae/cfg.json": b"{}"}
    assert (first / "sad.safetensors").exists(), "the state before the last is kept"


def test_old_states_go_and_their_open_files_stay(memory: MemoryFileSystem, cache: Path) -> None:
    place = f"{VECTORS}/numbers.npz"
    paths = []
    for number in range(4):
        memory.pipe("/bucket/vectors/numbers.npz", bytes([number]) * 4)
        paths.append(local_path(place))
        # The clock of the disk may not tell two of them apart.
        os.utime(paths[-1].parents[2], (number, number))
        if not number:
            mapped = np.memmap(paths[0], dtype=np.uint8, mode="r")
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert mapped.tolist() == [0, 0, 0, 0]
    (shelf,) = cache.iterdir()
    assert len(list(shelf.iterdir())) == 2


def test_what_a_process_left_behind_is_removed(memory: MemoryFileSystem, cache: Path) -> None:
    local_path(VECTORS)
    (shelf,) = cache.iterdir()
    for name, age in ((".old.partial", 0), (".new.partial", None)):
        (shelf / name).mkdir()
        if age is not None:
            os.utime(shelf / name, (age, age))
    local_path(VECTORS)
    assert [path.name for path in shelf.iterdir() if path.name.startswith(".")] == [".new.partial"]


def test_half_a_state_is_never_there(
    memory: MemoryFileSystem, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MemoryFileSystem.get_file

    def broken(self: MemoryFileSystem, rpath: str, lpath: str, **options: Any) -> None:
        if rpath.endswith("sad.safetensors"):
            raise ConnectionResetError("the line is dead")
        whole(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", broken)
    with pytest.raises(ArtefactError, match=f"^{VECTORS}: it could not be fetched: .*the line is dead"):
        local_path(VECTORS)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    monkeypatch.setattr(MemoryFileSystem, "get_file", whole)
    assert below(local_path(VECTORS)) == readable(files)


def test_a_transfer_that_ends_too_soon(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda self, rpath, lpath, **_: Path(lpath).write_bytes(b"x"))
    with pytest.raises(ArtefactError, match="ended after 1 of 2 bytes"):
        local_path(f"{VECTORS}/sae")


@pytest.mark.parametrize("times", [1, 9])
def test_a_change_while_it_is_fetched(times: int, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, left = MemoryFileSystem.get_file, [times]

    def changing(self: MemoryFileSystem, rpath: str, lpath: str, **options: Any) -> None:
        whole(self, rpath, lpath, **options)
        if left[0]:
            left[0] -= 1
            self.pipe(rpath, b"n" * left[0])

    monkeypatch.setattr(MemoryFileSystem, "get_file", changing)
    if times == 1:
        assert local_path(f"{VECTORS}/sae/cfg.json").read_bytes() == b""
    else:
        with pytest.raises(ArtefactError, match="changes while it is being fetched"):
            local_path(f"{VECTORS}/sae/cfg.json")


def test_another_process_is_faster(memory: MemoryFileSystem, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Path] = []
    fetch = url_places._fetch

    def late(url: str, target: Path) -> None:
        fetch(url, target)
        if not others:
            others.append(target)
            others.append(local_path(VECTORS))

    monkeypatch.setattr(url_places, "_fetch", late)
    path = local_path(VECTORS)
    assert path == others[1]
    assert below(path) == readable(files)
    assert not others[0].exists()


@pytest.mark.parametrize(
    ("inside", "names"),
    [
        ("", {"happy.safetensors", "sad.safetensors", "sae/cfg.json"}),
        ("sae", {"cfg.json"}),
        ("happy.safetensors", {"."}),
    ],
)
@pytest.mark.parametrize("outer", ["", "memory://bucket"])
def test_archives(
    inside: str, names: set[str], outer: str, files: Path, tmp_path: Path, memory: MemoryFileSystem
) -> None:
    archive = zipped(files, tmp_path / "my-vectors.zip")
    if outer:
        memory.put(str(archive), "/bucket/my-vectors.zip")
    place = f"zip://{inside}::{outer or tmp_path}/my-vectors.zip"
    path = local_path(place)
    assert path.name == (inside or "my-vectors")
    found = [file for file in [path, *path.rglob("*")] if file.is_file()]
    assert {str(file.relative_to(path)) for file in found} == names
    state = signature(place)
    (files / "happy.safetensors").write_bytes((files / "sad.safetensors").read_bytes())
    zipped(files, archive)
    if outer:
        memory.put(str(archive), "/bucket/my-vectors.zip")
    assert signature(place) != state
    assert local_path(place) != path


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nowhere://bucket", "Protocol not known: nowhere"),
        (VECTORS + "/none", "there is no such file or folder"),
        (VECTORS + "/README.md", "nothing that is read here"),
        ("memory://bucket/../vectors", "'..' in it is not taken"),
        ("zip://sae::" + VECTORS + "/none.zip", "there is no such file or folder"),
        ("zip://sae::" + VECTORS + "/sae/cfg.json", "BadZipFile"),
        ("https://[host/x.json", "Invalid IPv6 URL"),
        ("simplecache::" + VECTORS, "'simplecache' would hide what changes"),
    ],
)
def test_what_cannot_be_fetched(place: str, why: str, memory: MemoryFileSystem) -> None:
    with pytest.raises(ArtefactError, match=why) as caught:
        local_path(place)
    assert str(caught.value).startswith(f"{place}: ")
    assert "\n" not in str(caught.value)


def test_an_empty_folder_has_nothing(memory: MemoryFileSystem) -> None:
    memory.mkdir("/bucket/empty")
    for ask in (local_path, signature):
        with pytest.raises(ArtefactError, match="nothing that is read here"):
            ask("memory://bucket/empty")


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.Files", "err": "Install tugboat to reach the harbour"}
    monkeypatch.setitem(known_implementations, "tug", known)
    with pytest.raises(ArtefactError, match="a package for this file system is missing: Install tugboat"):
        signature("tug://pier/vectors")


def test_a_cache_that_cannot_be_written(memory: MemoryFileSystem, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(ArtefactError, match=f"^{VECTORS}: it could not be fetched: .*cache"):
        local_path(VECTORS)


class Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def web(files: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    (files / "my vector.safetensors").write_bytes((files / "sad.safetensors").read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(files)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    fsspec.get_filesystem_class("http").clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_pages_of_links_on_a_web_server(web: str, files: Path) -> None:
    path, state = local_path(f"{web}/"), signature(f"{web}/")
    assert below(path) == readable(files)
    # Its server tells times in whole seconds.
    os.utime(files / "happy.safetensors", (1, 1))
    assert signature(f"{web}/") != state
    assert below(local_path(f"{web}/sae")) == {"cfg.json": b"{}"}


def test_a_file_on_a_web_server(web: str, files: Path) -> None:
    for name in ("my%20vector.safetensors", "my%20vector.safetensors?key=s3cret"):
        path = local_path(f"{web}/{name}")
        assert path.name == "my vector.safetensors"
        assert path.read_bytes() == (files / "sad.safetensors").read_bytes()
    with pytest.raises(ArtefactError, match="404") as caught:
        local_path(f"{web}/none.safetensors?key=s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_web_server_that_does_not_answer() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(ArtefactError, match=r"^http://127.0.0.1:9/happy.safetensors: it could not be .*Connect"):
        signature("http://127.0.0.1:9/happy.safetensors")
