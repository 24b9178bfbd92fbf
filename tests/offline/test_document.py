"""The script of docs/llm.md, run as it stands there, prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

DOCUMENT = Path(__file__).parents[2] / "docs" / "llm.md"


def test_the_script_prints_what_the_page_says(tmp_path: Path) -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert found is not None
    script = tmp_path / "script.py"
    script.write_text(found[1], encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=580)
    # vLLM logs to the same stream.
    printed = [line for line in done.stdout.splitlines() if line in found[2].splitlines()]
    assert printed == found[2].splitlines()
