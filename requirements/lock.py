"""Write the lock files again from pyproject.toml.

    .venv/bin/python requirements/lock.py cpu     # cpu.lock and test.lock, resolved together
    .venv/bin/python requirements/lock.py cuda    # cuda.lock, at the same versions where both use a package

pip resolves from metadata alone (`--dry-run`), so nothing is installed. test.lock holds what cpu.lock does not. Run it
with the oldest supported Python, on Linux x86-64, where pip finds a CPU build of torch.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# vLLM names these, runs without them, and the builds that pip picks are linked against a CUDA torch: with a CPU
# torch they break `import transformers`.
NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec"}

# vLLM's two builds pin these differently.
OF_THE_BUILD = {"apache-tvm-ffi", "torch", "triton"}

# `pip install --no-deps --no-build-isolation -e .` needs the build backend in the environment; six is vLLM's on
# Python 3.12 and later only, where this resolution does not run.
ALWAYS = ["editables", "hatchling", "openai", "pathspec", "six"]

HEADER = """\
# {what}
# Written by requirements/lock.py; Python {python} and later, Linux x86-64. Install with --no-deps.
"""

WHAT = {
    "cpu": "The server with vLLM for the CPU. torch is to be the CPU build of this version: requirements/setup.sh.",
    "cuda": "The server with vLLM for CUDA.",
    "test": "What the tests and checks need beside the server.",
}


def canonical(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(lock: str) -> dict[str, str]:
    """The pins of a lock file by package name."""
    lines = (HERE / f"{lock}.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def resolve(requirements: list[str], constraints: dict[str, str] | None = None) -> dict[str, str]:
    """What pip would install into an empty environment, by package name, local version parts removed."""
    with tempfile.TemporaryDirectory() as folder:
        held, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        held.write_text("".join(f"{name}=={version}\n" for name, version in (constraints or {}).items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        options = ["--constraint", str(held), "--report", str(report)]
        subprocess.run([*command, *options, *requirements], check=True)
        found: dict[str, Any] = json.loads(report.read_text())
    items = (item["metadata"] for item in found["install"])
    return {canonical(item["name"]): item["version"].split("+")[0] for item in items}


def pins(device: str, project: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The lock files that belong together, by name."""
    extras: dict[str, list[str]] = project["optional-dependencies"]
    server = [*project["dependencies"], *ALWAYS, *extras[device]]
    if device == "cuda":
        # What both devices use has one version, so that test.lock fits on top of either. torch exactly as spelt: a CPU
        # build at hand, 2.13.0+cpu, would count as the newer version.
        held = {**read("cpu"), **read("test")}
        shared = {name: version for name, version in held.items() if name not in OF_THE_BUILD}
        return {"cuda": resolve([*server, "torch===" + held["torch"]], shared)}
    both = {name: pin for name, pin in resolve([*server, *extras["test"]]).items() if name not in NOT_ON_CPU}
    needed = resolve(server, both)
    return {
        "cpu": {name: version for name, version in both.items() if name in needed},
        "test": {name: version for name, version in both.items() if name not in needed},
    }


def main(devices: list[str]) -> None:
    """Write the locks of these devices, or of all."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    for device in devices or ["cpu", "cuda"]:
        if device not in ("cpu", "cuda"):
            sys.exit(f"unknown device {device!r}: cpu (writes test.lock too) or cuda")
        for lock, found in pins(device, project).items():
            lines = [f"{name}=={version}\n" for name, version in sorted(found.items())]
            header = HEADER.format(what=WHAT[lock], python=".".join(map(str, sys.version_info[:2])))
            (HERE / f"{lock}.lock").write_text(header + "".join(lines))
            print(f"requirements/{lock}.lock: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
