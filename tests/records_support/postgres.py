"""A PostgreSQL server of the tests' own: a real one, on a socket in a folder that is gone afterwards."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg

USER = "pilothouse"
_DEBIAN = "/usr/lib/postgresql"


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, of the newest version; None where there is none."""
    found = [path.parent for path in Path(_DEBIAN).glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    path = shutil.which("initdb")
    return None if path is None else Path(path).resolve().parent


class Postgres:
    """Runs between `start` and `stop`; what was committed is there again after the next start."""

    def __init__(self, bin_dir: Path) -> None:
        self._bin = bin_dir
        # Not below pytest's folder, which other users cannot enter: this server refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="pilothouse-pg-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._run(
            ["initdb", "--pgdata", str(self._data), "--username", USER, "--auth", "trust", "--no-sync", "-E", "UTF8"]
        )

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Return once it takes connections."""
        options = ["fsync=off", "full_page_writes=off", "listen_addresses=", f"unix_socket_directories={self.folder}"]
        flags = [word for option in options for word in ("-c", option)]
        command = [str(self._bin / "postgres"), "-D", str(self._data), *flags]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user())
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as by a crash: connections break in the middle of what they do."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Let it neither answer nor end, as a machine does that is short of everything."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on where it was."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            process.send_signal(number)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"records{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def _run(self, words: Sequence[str]) -> None:
        done = subprocess.run([self._bin / words[0], *words[1:]], capture_output=True, **self._as_user())
        assert done.returncode == 0, done.stderr.decode()

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {"cwd": self.folder}
        entry = pwd.getpwnam(self._user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": self.folder}
