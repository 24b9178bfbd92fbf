"""What is installed: the entry points lead somewhere, the locks pin everything, the wheel holds all three roots."""

import os
import tarfile
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("server", "steering_vectors", "probes")
LOCKS = ("cpu", "cuda", "test")

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]


def entry_points() -> list[EntryPoint]:
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    return [EntryPoint(name, value, group) for group, names in groups.items() for name, value in names.items()]


def locked(lock: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def names(lock: str) -> set[str]:
    return {canonicalize_name(pin.name) for pin in locked(lock)}


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_the_namespace_has_no_init(root: str) -> None:
    namespace = ROOT / root / "pilothouse"
    assert namespace.is_dir()
    assert not [path.name for path in namespace.iterdir() if path.suffix in {".py", ".pyi"}], (
        "a module here would hide the other two roots; put it into a room"
    )


@pytest.mark.parametrize("entry_point", entry_points(), ids=lambda found: f"{found.group}:{found.name}")
def test_entry_points_resolve(entry_point: EntryPoint) -> None:
    assert callable(entry_point.load())


def test_both_entry_points_are_declared() -> None:
    assert {(entry_point.group, entry_point.name) for entry_point in entry_points()} == {
        ("console_scripts", "pilothouse"),
        ("vllm.endpoint_plugins", "pilothouse"),
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_everything(lock: str) -> None:
    pins = locked(lock)
    assert pins
    loose = [str(pin) for pin in pins if [clause.operator for clause in pin.specifier] != ["=="] or pin.url]
    assert not loose
    assert len(names(lock)) == len(pins), "a package is pinned twice"


def test_the_cpu_lock_leaves_out_what_breaks_a_cpu_torch() -> None:
    assert not names("cpu") & {"torchvision", "torchaudio", "torchcodec"}
    assert not names("test") & {"torchvision", "torchaudio", "torchcodec"}
    assert not [name for name in names("cpu") if name.startswith("nvidia-")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_test_lock_adds_and_never_overrules(device: str) -> None:
    assert not names("test") & names(device)


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("cpu", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"], "openai", "httpx"]),
        ("cuda", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cuda"], "openai", "httpx"]),
        ("test", PROJECT["optional-dependencies"]["test"]),
    ],
)
def test_locks_satisfy_the_project(lock: str, requirements: list[str]) -> None:
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in locked(lock)}
    if lock == "test":
        pins |= {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in locked("cpu")}
    for requirement in map(Requirement, requirements):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is in pyproject.toml and not in the lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} but locked at {version}"


def data_files() -> set[str]:
    """The files that are no code and must be installed, as paths inside the package."""
    harbor = ROOT / "server" / "pilothouse" / "harbor"
    suffixes = {".safetensors", ".json", ".jsonl", ".jinja"}
    return {str(path.relative_to(ROOT / "server")) for path in harbor.rglob("*") if path.suffix in suffixes}


def modules() -> set[str]:
    found = {root: list((ROOT / root / "pilothouse").rglob("*.py")) for root in SOURCE_ROOTS}
    assert all(found.values())
    return {str(path.relative_to(ROOT / root)) for root, paths in found.items() for path in paths}


def test_the_wheel_holds_all_three_roots_and_the_data(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert modules() | data_files() <= packed
    assert "pilothouse/__init__.py" not in packed
    strangers = {path.split("/")[0] for path in packed} - {"pilothouse", f"pilothouse-{PROJECT['version']}.dist-info"}
    assert not strangers


def test_the_sdist_holds_all_three_roots_and_the_data(tmp_path: Path) -> None:
    sdist = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for root in SOURCE_ROOTS:
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / root / "pilothouse").rglob("*.py")}
        assert ours <= packed
    assert {f"server/{path}" for path in data_files()} <= packed
    assert {"LICENSE", "README.md", "pyproject.toml"} <= packed


def test_scripts_are_executable() -> None:
    for script in (".ci/run", "requirements/setup.sh", "requirements/prometheus.sh"):
        assert os.access(ROOT / script, os.X_OK), script
