"""What is made of listings and errors of file systems, with one that lists and refuses what it is told to."""

from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.core.places import local_path, signature
from pilothouse.core.url_errors import masked


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTHOUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Fake(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A file system that lists what it is told to, folder by folder as fsspec does by default, and may refuse."""

    protocol = "fake"
    cachable = False
    listing: ClassVar[dict[str, list[dict[str, Any]]]] = {}
    refusal: ClassVar[Exception | None] = None

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[dict[str, Any]]:
        if self.refusal is not None:
            raise self.refusal
        if path not in self.listing:
            raise PermissionError(f"{path} is closed")
        return self.listing[path]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        return {"name": path, "size": 0, "type": "directory"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    fsspec.register_implementation("fake", Fake, clobber=True)
    monkeypatch.setattr(Fake, "listing", {})
    monkeypatch.setattr(Fake, "refusal", None)
    return Fake


def entry(name: str, **info: Any) -> dict[str, Any]:
    return {"name": name, "size": 1, "type": "file", **info}


@pytest.mark.parametrize(
    "name",
    [
        "vectors/../../x.json",
        "vectors/a/../../../x.json",
        "vectors//etc/x.json",
        "/etc/x.json",
        "other/x.json",
        "../x.json",
    ],
)
def test_names_that_lead_out_are_refused(name: str, fake: type[Fake], cache: Path) -> None:
    fake.listing["vectors"] = [entry(name)]
    for ask in (local_path, signature):
        with pytest.raises(ArtefactError, match=r"^fake://vectors: .*leads out of the folder"):
            ask("fake://vectors")
    assert not cache.exists()


def test_folders_that_lead_out_are_refused(fake: type[Fake]) -> None:
    fake.listing["vectors"] = [entry("vectors/..", type="directory")]
    with pytest.raises(ArtefactError, match="leads out of the folder"):
        signature("fake://vectors")


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(fake: type[Fake]) -> None:
    fake.listing["vectors"] = [entry("vectors/x.json"), entry("vectors/sub", type="directory")]
    with pytest.raises(ArtefactError, match=r"access is refused \(vectors/sub is closed\)"):
        signature("fake://vectors")


def test_a_folder_within_itself_ends(fake: type[Fake]) -> None:
    folder = "vectors"
    for _ in range(40):
        fake.listing[folder] = [entry(f"{folder}/x.json"), entry(f"{folder}/a", type="directory")]
        folder += "/a"
    assert signature("fake://vectors")


@pytest.mark.parametrize("key", ["ETag", "LastModified", "last_modified", "md5Hash", "mtime", "created", "size"])
def test_what_tells_of_a_change(key: str, fake: type[Fake]) -> None:
    states = set()
    for value in ("1", "2"):
        fake.listing["vectors"] = [entry("vectors/x.json", **{key: value})]
        states.add(signature("fake://vectors"))
    assert len(states) == 2


def test_a_time_of_access_tells_of_none(fake: type[Fake]) -> None:
    states = set()
    for value in ("1", "2"):
        fake.listing["vectors"] = [entry("vectors/x.json", atime=value)]
        states.add(signature("fake://vectors"))
    assert len(states) == 1


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (PermissionError("no key\nfits"), r"access is refused \(no key fits\)"),
        (FileNotFoundError("no bucket"), r"there is no such file or folder \(no bucket\)"),
        (TimeoutError(), "it could not be fetched: TimeoutError"),
        (ConnectionError("530 s3cret is no password"), r"530 \*\*\* is no password"),
        (RuntimeError("login of anne:s3cret at ftp://anne:s3cret@host failed"), "login of anne:"),
    ],
)
def test_secrets_are_not_told(refusal: Exception, why: str, fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "refusal", refusal)
    for ask in (local_path, signature):
        with pytest.raises(ArtefactError, match=why) as caught:
            ask("fake://anne:s3cret@host/vectors")
        assert str(caught.value).startswith("fake://***@host/vectors: ")
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("https://token@host/x", "https://***@host/x"),
        ("zip://a.json::ftp://anne:s3cret@host/x.zip", "zip://a.json::ftp://***@host/x.zip"),
        ("abfs://box@account/x", "abfs://box@account/x"),
        ("github://org:repo@main/x", "github://org:***@main/x"),
        ("https://host/x.json?key=s3cret&a=b:s3cret", "https://host/x.json?***"),
        ("zip://a::https://host/x.zip?key=s3cret::ftp://anne@host", "zip://a::https://host/x.zip?***::ftp://***@host"),
        ("zip://a::https://host/x.zip?key=s3cret", "zip://a::https://host/x.zip?***"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert masked(url) == shown
