"""One clear line when the server cannot start, though the reason arose in another process.

vLLM reports only that its engine process died. The launcher names a file in the environment; whichever process knows
the reason writes it there, and the launcher prints it as the last line.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilothouse.core.errors import StartupError

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


@contextmanager
def startup_failures() -> Iterator[Path]:
    """Turn whatever ends the block into StartupError with the reason that another process reported, if one did.

    Gives the block a folder that it shares with those processes, and that is gone at its end.
    """
    with tempfile.TemporaryDirectory(prefix="pilothouse-") as folder:
        os.environ[FAILURE_FILE_ENV] = str(Path(folder) / "failure")
        try:
            yield Path(folder)
        except (Exception, SystemExit) as error:
            if reason := reported_failure():
                raise StartupError(reason) from error
            raise
