"""`from pilothouse import LLM`, though `pilothouse` is a namespace without code of its own."""

import importlib
import subprocess
import sys

import pytest


def test_the_short_name_is_the_class() -> None:
    from vllm import LLM as theirs  # noqa: N811

    from pilothouse.offline import LLM

    short: object = importlib.import_module("pilothouse.LLM")
    assert short is LLM
    assert issubclass(LLM, theirs)


@pytest.mark.slow
def test_it_is_imported_in_a_fresh_process_like_any_name() -> None:
    script = "from pilothouse import LLM; import pilothouse; print(LLM.__module__, pilothouse.LLM is LLM)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["pilothouse.offline.llm", "True"]
