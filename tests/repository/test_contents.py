"""What the repository says: nothing in it points at one machine or one package source."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In two halves, or this file would name them too.
REFUSED = [
    "/wor" + "k/",
    "/roo" + "t/",
    "/Use" + "rs/",
    "pypi" + ".org",
    "files.python" + "hosted",
    "download.py" + "torch.org",
]


def tracked() -> list[Path]:
    """The files under version control, or about to be: whatever git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def refused_in(content: bytes) -> list[str]:
    return [word for word in REFUSED if word.encode() in content]


def test_no_machine_and_no_package_source_is_named() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    paths = tracked()
    assert ROOT / "pyproject.toml" in paths
    found = {str(path.relative_to(ROOT)): words for path in paths if (words := refused_in(path.read_bytes()))}
    assert not found


@pytest.mark.parametrize("word", REFUSED)
def test_the_check_sees_each_word(word: str) -> None:
    assert refused_in(f"see {word} for more".encode()) == [word]
    assert refused_in(b"see the readme for more") == []
