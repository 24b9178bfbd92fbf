"""A server process of `pilothouse bench`: how it is ended, and what processor time it is told to have used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilothouse.cli.bench.machine import RUNNER_ENV, machine
from pilothouse.cli.bench.servers import Server


def test_a_server_is_interrupted_once(tmp_path: Path) -> None:
    count = "import signal, sys, time; n = []; signal.signal(signal.SIGINT, lambda *_: n.append(1)); "
    count += f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(0.5); sys.exit(10 + len(n))"
    server = Server(["-c", count])
    with server:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        server.interrupt()
    assert server._process is not None
    assert server._process.returncode == 11


@pytest.mark.parametrize(("asked", "runner"), [(None, "V1"), ("0", "V1"), ("1", "V2")])
def test_servers_run_the_model_runner_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, runner: str
) -> None:
    monkeypatch.delenv(RUNNER_ENV, raising=False)
    if asked is not None:
        monkeypatch.setenv(RUNNER_ENV, asked)
    with Server(["-c", f"import os; print(os.environ['{RUNNER_ENV}'])"]) as server:
        assert server._process is not None
        server._process.wait(timeout=60)
        assert f"V{1 + int(Path(server._log.name).read_text())}" == runner
    assert machine()["model_runner"] == runner


def test_processor_time_is_that_of_the_whole_tree() -> None:
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    server = Server([])
    server._process = subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while server.cpu_seconds() < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        used = server.cpu_seconds()
        with server.paused():
            time.sleep(0.1)
            stopped = server.cpu_seconds()
            time.sleep(0.3)
            assert server.cpu_seconds() == pytest.approx(stopped, abs=0.02)
        assert stopped >= used
    finally:
        os.killpg(server._process.pid, signal.SIGKILL)
        server._process.wait()
