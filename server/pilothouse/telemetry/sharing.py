"""What processes must know of each other that the files of prometheus_client cannot hold: exemplars, recent scores.

Each process writes a file beside those, at most once a second, whole and by renaming; whoever is scraped reads all.
"""

import atexit
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER_ENV = "PROMETHEUS_MULTIPROC_DIR"
"""Set, by vLLM or by hand, where several processes count together."""

INTERVAL = 1.0
"""Seconds between two writes."""

_PREFIX = "pilothouse_"


class Sharing:
    """This process's file in `folder`, and how to read the others'.

    prepare: called before each write, and gives what is to be written, in JSON.
    """

    def __init__(self, folder: Path, prepare: Callable[[], Any]) -> None:
        self.folder = folder
        self._prepare = prepare
        self._written = ""
        self._complained = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """Write from now on, in the background and when the process ends."""
        threading.Thread(target=self._run, name="pilothouse-metrics", daemon=True).start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Write a last time."""
        self._stopped.set()
        atexit.unregister(self.stop)
        self.write()

    def write(self) -> None:
        """Write what there is, if it has changed. Failing harms nobody: it is logged once, and tried again."""
        try:
            text = json.dumps(self._prepare())
            if text == self._written:
                return
            partial = self._path().with_suffix(f".{threading.get_ident()}.partial")
            partial.write_text(text)
            partial.replace(self._path())
            self._written = text
        except Exception:
            if not self._complained and not self._stopped.is_set():
                self._complained = True
                logger.exception("metrics cannot be shared among processes by %s", self.folder)

    def others(self) -> list[Any]:
        """What the other processes have written, dead ones included; files that cannot be read are passed over."""
        found = []
        for path in sorted(self.folder.glob(f"{_PREFIX}*.json")):
            if path == self._path():
                continue
            try:
                found.append(json.loads(path.read_bytes()))
            except (OSError, ValueError):
                logger.debug("%s cannot be read", path, exc_info=True)
        return found

    def _path(self) -> Path:
        # Asked each time: a fork has a file of its own.
        return self.folder / f"{_PREFIX}{os.getpid()}.json"

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self.write()
