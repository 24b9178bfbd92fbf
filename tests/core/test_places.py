"""Places here and on the hub, without the network: a cache made by hand, and a hub of a few routes on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from pilothouse.core.errors import ArtefactError
from pilothouse.core.places import MISSING, HubPlace, is_on_hub, local_path, signature

COMMIT, OLD = "a" * 40, "b" * 40
FILES = {
    COMMIT: {
        "happy.gguf": b"new",
        "README.md": b"words",
        "probes/head/probe_head.bin": b"head",
        "probes/head/probe_config.json": b"{}",
        "pytorch_model.bin": b"a model",
    },
    OLD: {"happy.gguf": b"old"},
}
REVISIONS = {"main": COMMIT, "refs/pr/3": OLD, "v1": OLD, COMMIT: COMMIT, OLD: OLD}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, offline, with two revisions of one repository."""
    repo = tmp_path / "hub" / "models--org--vectors"
    for commit, files in FILES.items():
        for name, content in files.items():
            path = repo / "snapshots" / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for name, commit in REVISIONS.items():
        (repo / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo / "snapshots"


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("hf://org/vectors", COMMIT),
        ("hf://org/vectors/", COMMIT),
        ("hf://org/vectors@main", COMMIT),
        ("hf://org/vectors/happy.gguf", f"{COMMIT}/happy.gguf"),
        ("hf://org/vectors@v1/happy.gguf", f"{OLD}/happy.gguf"),
        ("hf://org/vectors@refs/pr/3/happy.gguf", f"{OLD}/happy.gguf"),
        ("hf://org/vectors@refs%2Fpr%2F3/happy.gguf", f"{OLD}/happy.gguf"),
        (f"hf://org/vectors@{OLD}", OLD),
        ("hf://org/vectors/probes/head/", f"{COMMIT}/probes/head"),
        ("hf://org/vectors//probes//head", f"{COMMIT}/probes/head"),
    ],
)
def test_places_in_the_cache(place: str, path: str, cache: Path) -> None:
    assert is_on_hub(place)
    assert local_path(place) == cache / path


@pytest.mark.parametrize("place", ["", ".", "vectors", "/somewhere/else", "hf:/org/vectors", "org/vectors"])
def test_other_places_stay_as_they_are(place: str) -> None:
    assert not is_on_hub(place)
    assert local_path(place) == Path(place)


@pytest.mark.parametrize(
    "place",
    [
        "hf://",
        "hf://org",
        "hf:///org/vectors",
        "hf://org/vectors@",
        "hf://org/vectors/../../other",
        "hf://org/vectors@../x",
        "hf://org/vectors@..%2Fx",
        "hf://../vectors",
        "hf://datasets/org/vectors",
        "hf://org/vec tors",
    ],
)
def test_what_is_no_place(place: str, cache: Path) -> None:
    with pytest.raises(ArtefactError, match="hf://"):
        local_path(place)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("hf://org/others", "HF_HUB_OFFLINE is set, and revision 'main' is not whole in the cache"),
        ("hf://org/vectors@v2", "HF_HUB_OFFLINE is set, and revision 'v2'"),
        (f"hf://org/vectors@{'c' * 40}", "HF_HUB_OFFLINE is set"),
        ("hf://org/vectors/sad.gguf", "cached copy of the repository has nothing under 'sad.gguf'"),
    ],
)
def test_what_the_cache_has_not(place: str, why: str, cache: Path) -> None:
    with pytest.raises(ArtefactError, match=why) as caught:
        local_path(place)
    assert str(caught.value).startswith(place)


def test_the_environment_is_honoured(cache: Path) -> None:
    """In a process of its own: the hub's library reads its variables once."""
    code = "import sys; from pilothouse.core.places import local_path; print(local_path(sys.argv[1]))"
    home = cache.parents[2]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("HF_HUB_CACHE", None)
    shown = subprocess.run(
        [sys.executable, "-c", code, "hf://org/vectors@v1"], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(shown.stdout.strip()) == home / "hub" / "models--org--vectors" / "snapshots" / OLD


class Hub(http.server.BaseHTTPRequestHandler):
    """The routes of the hub that a snapshot needs, for one public and one gated repository."""

    def __init__(self, asked: list[str], *args: object) -> None:
        self.asked = asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if repo == "org/gated":
            return self.answer(b"", 403, {"X-Error-Code": "GatedRepo"})
        if repo != "org/vectors":
            return self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        commit = next((c for name, c in REVISIONS.items() if "/".join(rest[1:]).startswith(name)), None)
        if commit is None:
            return self.answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        if api and rest[0] == "revision":
            siblings = [{"rfilename": name} for name in FILES[commit]]
            return self.answer(json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
        if api and rest[0] == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{name}-{commit}"}
                for name, content in FILES[commit].items()
            ]
            return self.answer(json.dumps(tree).encode())
        name = "/".join(rest[2:])
        self.asked.append(name)
        etag = {"ETag": f'"{commit[:8]}{len(name)}"', "X-Repo-Commit": commit}
        return self.answer(FILES[commit][name], headers=etag)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine and an empty cache; the files that were asked for."""
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, asked))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("hf://org/vectors", {"happy.gguf", "probes/head/probe_head.bin", "probes/head/probe_config.json"}),
        ("hf://org/vectors/happy.gguf", {"happy.gguf"}),
        ("hf://org/vectors/probes", {"probes/head/probe_head.bin", "probes/head/probe_config.json"}),
        (f"hf://org/vectors@{OLD}/happy.gguf", {"happy.gguf"}),
    ],
)
def test_what_is_fetched(place: str, files: set[str], hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = local_path(place)
    assert set(hub) == files
    if path.is_file():
        assert path.read_bytes() == (b"old" if OLD in place else b"new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_path(place) == path


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("hf://org/others", "no such repository, or it is private"),
        ("hf://org/gated", "gated.*HF_TOKEN"),
        ("hf://org/vectors@v9", "no revision 'v9'"),
        ("hf://org/vectors/sad.gguf", "the repository has nothing under 'sad.gguf'"),
        ("hf://org/vectors/README.md", "nothing under 'README.md'"),
        ("hf://org/vectors/pytorch_model.bin", "nothing under 'pytorch_model.bin'"),
    ],
)
def test_what_the_hub_has_not(place: str, why: str, hub: list[str]) -> None:
    with pytest.raises(ArtefactError, match=why):
        local_path(place)


def test_a_hub_that_does_not_answer(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtefactError, match="the hub did not answer, and revision 'main' is not whole in the cache"):
        local_path("hf://org/vectors")


@pytest.mark.parametrize(
    ("place", "commit"),
    [
        ("hf://org/vectors", COMMIT),
        ("hf://org/vectors@v1/happy.gguf", OLD),
        ("hf://org/vectors@refs/pr/3", OLD),
        (f"hf://org/vectors@{OLD}", OLD),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_signatures_are_commits(
    place: str, commit: str, offline: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = request.getfixturevalue("cache" if offline else "hub")
    if offline or OLD in place:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert signature(place) == commit
    assert offline or fixture == [], "a file was asked for"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("hf://org/others", "no such repository, or it is private"),
        ("hf://org/gated", "gated.*HF_TOKEN"),
        ("hf://org/vectors@v9", "no revision 'v9'"),
    ],
)
def test_what_has_no_signature(place: str, why: str, hub: list[str]) -> None:
    with pytest.raises(ArtefactError, match=why):
        signature(place)


def test_no_signature_from_a_hub_that_does_not_answer(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtefactError, match=r"^hf://org/vectors: it could not be fetched: .*refused"):
        signature("hf://org/vectors")


@pytest.mark.parametrize("inside", ["", "a/b.gguf", "odd [name]*"])
def test_patterns_are_of_the_place_alone(inside: str) -> None:
    from huggingface_hub.utils import filter_repo_objects

    place = HubPlace("org/vectors", None, inside)
    prefix = f"{inside}/" if inside else ""
    wanted = [f"{prefix}x.safetensors", f"{prefix}deep/y.json", f"{prefix}probe_head.bin"]
    others = [f"{prefix}README.md", f"{prefix}run.py", f"{prefix}pytorch_model.bin", *(["other/x.gguf"] * bool(inside))]
    kept = list(filter_repo_objects([*wanted, *others], allow_patterns=place.patterns))
    assert kept == wanted
    assert str(place) == f"hf://org/vectors{'/' * bool(inside)}{inside}"


def test_signatures_of_paths_here(tmp_path: Path) -> None:
    files = tmp_path / "files"
    for name in ("happy.safetensors", "README.md", "sae/cfg.json"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text("{}")
    assert signature(str(tmp_path / "none")) == MISSING
    place = str(files)
    states = [signature(place), signature(str(files / "happy.safetensors"))]
    (files / "README.md").write_text("others")
    assert signature(place) == states[0]
    (files / "sae" / "cfg.json").write_text("[]")
    states.append(signature(place))
    # Links count as what they lead to; one to nowhere and one to a folder above do no harm.
    (tmp_path / "elsewhere").mkdir()
    (files / "linked").symlink_to(tmp_path / "elsewhere")
    (files / "above").symlink_to(files)
    (files / "nowhere.json").symlink_to(tmp_path / "none")
    states.append(signature(place))
    (tmp_path / "elsewhere" / "x.pt").write_bytes(b"")
    states.append(signature(place))
    (files / "happy.safetensors").unlink()
    states.append(signature(place))
    assert len(set(states)) == len(states)
    assert signature(place) == states[-1]
