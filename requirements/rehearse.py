"""Hold the seams against a release of vLLM that is not installed.

    .venv/bin/python requirements/rehearse.py 0.33.0            # fetches its wheel, without what it depends on
    .venv/bin/python requirements/rehearse.py path/to/a.whl     # or takes one that is here

Nothing is installed and nothing of it is run: its source is read. Prints the seams that moved, and the functions behind
those that hold whose text has changed since the installed release. Exit status 1 when a seam moved.
"""

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from engine_support.seams import MEMBERS, PARTS, SIGNATURES, Tree, changed, moved


def fetch(release: str, folder: Path) -> Path:
    """The wheel of a release."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), f"vllm=={release}"], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, folder: Path) -> Tree:
    """The Python source of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".py")])
    return Tree(folder / "vllm")


def installed() -> Tree:
    """The source of the vLLM that is installed, which is not imported."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("vLLM is not installed: there is nothing to compare with")
    return Tree(Path(spec.origin).parent)


def main(what: str) -> int:
    """Print what moved; the exit status."""
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        given = Path(what)
        wheel = given if given.suffix == ".whl" else fetch(what, Path(folder))
        new, old = unpack(wheel, Path(folder)), installed()
        gone, differ = moved(new), changed(old, new)
    n_seams = len(SIGNATURES) + len(PARTS) + len(MEMBERS)
    print(f"{wheel.name}: {n_seams} seams and all imports of the engine's room were looked at")
    print(f"\nmoved: {len(gone)}")
    print("".join(f"  {line}\n" for line in gone))
    print(f"in place, but with another text than in the installed release: {len(differ)} of {len(SIGNATURES)}")
    print("".join(f"  {line}\n" for line in differ), end="")
    return 1 if gone else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1]))
