"""The servers that a benchmark runs, and the load that it sends them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from pilothouse.core.errors import StartupError


@dataclass(frozen=True)
class Load:
    """A burst: `batch` requests at once, `tokens` tokens each, whatever the model would rather say."""

    model: str
    batch: int
    tokens: int

    def body(self, number: int) -> dict[str, Any]:
        """A completion request; prompts differ so that no two share more than their first words."""
        return {
            "model": self.model,
            "prompt": f"Question {number}: what is the capital of the country that comes {number}th?",
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Server:
    """A server process on a free local port, stopped at the end of the block."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
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
        environment = {**calm, **os.environ, "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_NO_USAGE_STATS": "1"}
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

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

    def log_tail(self, n_bytes: int = 4000) -> str:
        """The end of what the server printed."""
        with open(self._log.name, "rb") as log:
            return log.read()[-n_bytes:].decode("utf-8", errors="replace")


async def burst(server: Server, bodies: list[dict[str, Any]]) -> tuple[float, int]:
    """Send all bodies at once; seconds until the last answer, and tokens generated."""
    # A client of its own: while a server is stopped, connections that were kept alive run out.
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:
        begin = time.perf_counter()
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
        seconds = time.perf_counter() - begin
    for answer in answers:
        answer.raise_for_status()
    return seconds, sum(answer.json()["usage"]["completion_tokens"] for answer in answers)


async def layout_of(server: Server) -> dict[str, int]:
    """How many layers of one of our servers have a site, and how many steps of a chain are compiled in at each."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
        answer = await client.get("/v1/capabilities")
    answer.raise_for_status()
    found = answer.json()
    return {"sites": len(found["sites"]), "chain_steps": found["limits"]["chain_steps"]}
