"""The servers that a benchmark runs: all resident, all but one stopped."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

import httpx

from pilothouse.cli.bench.machine import RUNNER_ENV
from pilothouse.core.errors import StartupError

Name = TypeVar("Name", bound=str)


class Server:
    """A server process on a free local port, stopped at the end of the block."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted = False
        self._log = tempfile.NamedTemporaryFile(prefix="pilothouse-server-", suffix=".log")  # noqa: SIM115
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        command = [sys.executable, *self._arguments, "--host", "127.0.0.1", "--port", str(self.port)]
        # One core for the processes around the worker: its OpenMP threads wait for one another, and a displaced one
        # makes a step five to eight times as long.
        calm = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"} if (os.cpu_count() or 1) > 1 else {}
        environment = {RUNNER_ENV: "0", **calm, **os.environ, "VLLM_NO_USAGE_STATS": "1"}
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is None:
            return
        self.interrupt()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def interrupt(self) -> None:
        """Ask the server to end, once: a second signal would cut its own cleaning up short."""
        if self._process is not None and not self._interrupted:
            self._process.send_signal(signal.SIGINT)
            self._interrupted = True

    async def wait_until_ready(self, timeout: float = 600) -> None:
        """Return once the server answers; StartupError with the end of its log when it dies or takes too long."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                async with httpx.AsyncClient(base_url=self.url, timeout=10, trust_env=False) as client:
                    if (await client.get("/health")).status_code == 200:
                        return
            except httpx.TransportError:
                await asyncio.sleep(0.5)
        raise StartupError(f"the server did not start; the end of its log:\n{self.log_tail()}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all processes of the server for as long as the block runs: an idle vLLM worker spins for seconds."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Processor time that all processes of the server have used so far."""
        # Not a dependency of ours: where there is an engine to be measured, it has brought this along.
        import psutil

        if self._process is None:
            raise RuntimeError("the server is not running")
        root = psutil.Process(self._process.pid)
        total = 0.0
        for process in (root, *root.children(recursive=True)):
            # Helpers come and go.
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def log_tail(self, n_bytes: int = 4000) -> str:
        """The end of what the server printed."""
        with open(self._log.name, "rb") as log:
            return log.read()[-n_bytes:].decode("utf-8", errors="replace")


@contextmanager
def alone(servers: Mapping[Name, Server], place: Name) -> Iterator[Server]:
    """The server at `place`, all others stopped for as long as the block runs."""
    with all_stopped({other: server for other, server in servers.items() if other != place}):
        yield servers[place]


@contextmanager
def all_stopped(servers: Mapping[Name, Server]) -> Iterator[None]:
    """None of these servers runs for as long as the block does."""
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server.paused())
        yield


async def layout_of(server: Server) -> dict[str, int]:
    """How many layers of one of our servers have a site, and the shapes of the hooks there."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
        answer = await client.get("/v1/capabilities")
    answer.raise_for_status()
    found = answer.json()
    shapes = {name: int(found["limits"][name]) for name in ("rows", "chain_steps", "readouts")}
    return {"sites": len(found["sites"]), **shapes}
