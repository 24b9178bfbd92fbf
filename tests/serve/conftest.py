"""One real server of the embedded model for all tests of this folder, started as a user starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from engine_support.harness import Reference
from serve_support.server import ADMIN_KEY, Server, make_sae, make_vector, wait_until_ready

from pilothouse.harbor.paths import model_dir, probes_dir, vectors_dir


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    sae = make_sae(folder / "saes" / "random-l2")
    make_vector(folder / "vectors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pilothouse.cli.main", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--vectors", str(vectors_dir()), "--vectors", str(folder / "vectors"), "--probes", str(probes_dir())]
    command += ["--saes", str(sae.parent), "--default-probes", "truthfulness", "--admin-key", ADMIN_KEY]
    log = folder / "server.log"
    with log.open("wb") as out:
        environment = {**os.environ, "TORCH_LOGS": "recompiles"}
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    found = Server(f"http://127.0.0.1:{port}", process, log, sae)
    try:
        wait_until_ready(found)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The embedded model in Hugging Face."""
    return Reference(model_dir())


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir())
