"""Streams that are under way when something dies, and stock vLLM in the same situation."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import pytest

from pilothouse.harbor.paths import model_dir
from serve_support.server import Server
from serve_support.topologies import request

Ending = Literal["done", "error event", "closed"]

LONG = 900
"""Tokens of a stream that is not over when something dies."""
USAGE = {"include_usage": True, "continuous_usage_stats": True}
BEGUN = 5
"""Chunks by which a stream is well under way: scores lag their tokens."""

PLAIN = """
import sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
arguments.model = arguments.model_tag
validate_parsed_serve_args(arguments)
ServeSubcommand().cmd(arguments)
"""


@dataclass
class Stream:
    """A steered and probed stream, read by a thread of its own until it ends or is dropped."""

    server: Server
    body: dict[str, Any]
    chunks: list[dict[str, Any]] = field(default_factory=list)
    ending: Ending | None = None
    error: str = ""

    def __post_init__(self) -> None:
        self.begun = threading.Event()
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def drop(self) -> None:
        """Leave with the next chunk, as a client does that closes its connection."""
        self._dropped.set()
        self.wait()

    def wait(self, seconds: float = 300) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the stream hangs"

    @property
    def n_tokens(self) -> int:
        """Tokens that were delivered; a chunk may bring several."""
        return max((int(chunk["usage"]["completion_tokens"]) for chunk in self.chunks), default=0)

    @property
    def last(self) -> dict[str, Any]:
        """The last chunk's choice."""
        choice: dict[str, Any] = [chunk for chunk in self.chunks if chunk["choices"]][-1]["choices"][0]
        return choice

    def _read(self) -> None:
        try:
            with (
                httpx.Client(base_url=self.server.url, timeout=300, trust_env=False) as client,
                client.stream("POST", "/v1/completions", json=self.body) as response,
            ):
                for line in response.iter_lines():
                    if line:
                        self._take(line.removeprefix("data: "))
                    if self._dropped.is_set():
                        return
            self.ending = self.ending or "closed"
        except httpx.TransportError:
            self.ending = self.ending or "closed"
        finally:
            self.begun.set()

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.ending = self.ending or "done"
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.ending, self.error = "error event", chunk["error"]["message"]
            return
        self.chunks.append(chunk)
        if len(self.chunks) >= BEGUN:
            self.begun.set()


def stream(server: Server, number: int, **fields: Any) -> Stream:
    """Request `number` of the traffic, steered by a plan of its own, streamed."""
    body, _ = request(3 * number + 1)
    body = {k: v for k, v in body.items() if k not in ("logprobs", "return_token_ids")}
    return Stream(server, {**body, "max_tokens": LONG, "stream": True, "stream_options": USAGE, **fields})


def plain_stream(server: Server, number: int) -> Stream:
    """The same without steering and probes, for a server that has neither."""
    body, _ = request(3 * number)
    kept = ("model", "prompt", "temperature", "ignore_eos")
    return Stream(server, {**{k: body[k] for k in kept}, "max_tokens": LONG, "stream": True, "stream_options": USAGE})


def process_called(server: Server, title: str) -> psutil.Process:
    """A process of the server, by what vLLM calls it."""
    found = psutil.Process(server.process.pid).children(recursive=True)
    return next(process for process in found if title in " ".join(process.cmdline()))


@dataclass
class Aftermath:
    """What was left when a process had been killed: how streams ended, how the server did, and what it said."""

    streams: list[Stream]
    status: int
    log: str

    @property
    def endings(self) -> set[str | None]:
        return {stream.ending for stream in self.streams}


def kill(server: Server, title: str, begin: Callable[[int], Stream], n: int) -> Aftermath:
    """Kill the process of that title in the middle of `n` streams, and wait until the server is gone."""
    # Looked for before: to go through all processes may take as long as a stream.
    victim = process_called(server, title)
    streams = [begin(number) for number in range(n)]
    for each in streams:
        assert each.begun.wait(120)
    victim.kill()
    for each in streams:
        each.wait()
    status = server.process.wait(timeout=300)
    return Aftermath(streams, status, server.log.read_text(errors="replace"))


@contextmanager
def plain_serving(folder: Path, *options: str) -> Iterator[Server]:
    """Stock vLLM with the same model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--served-model-name", "harbor", "--dtype", "float32", "--max-model-len", "1024"]
    flags += ["--kv-cache-memory-bytes", str(256 << 20), "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "vllm.log"
    # The runner that Pilothouse chooses too.
    environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"}
    with log.open("wb") as out:
        command = [sys.executable, "-c", PLAIN, str(model_dir()), *flags, *options]
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, folder)
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_healthy(server: Server) -> None:
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"vLLM did not start:\n{server.log.read_text(errors='replace')[-6000:]}")
