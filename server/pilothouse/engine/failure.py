"""One clear line when the server cannot start, though the reason arose in another process.

vLLM reports only that its engine process died. The launcher names a file in the environment; whichever process knows
the reason writes it there, and the launcher prints it as the last line.
"""

import os
from pathlib import Path

FAILURE_FILE_ENV = "PILOTHOUSE_FAILURE_FILE"


def report_startup_failure(message: str) -> None:
    """Leave `message` for the launcher, if one is listening."""
    if path := os.environ.get(FAILURE_FILE_ENV):
        Path(path).write_text(message, encoding="utf-8")


def reported_failure() -> str | None:
    """What another process left, or None."""
    path = os.environ.get(FAILURE_FILE_ENV)
    if not path or not Path(path).is_file():
        return None
    return Path(path).read_text(encoding="utf-8") or None
