"""A real server as the tests see it, and the artefacts that it is given beside Harbor's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from pilothouse.core.directions import Direction
from pilothouse.core.sites import SITE
from pilothouse.harbor.paths import probes_dir, vectors_dir
from pilothouse.steering import Vector, save_vector

ADMIN_KEY = "test-admin-key"
D_MODEL = 256
N_FEATURES = 12
PRESETS: dict[str, Any] = {
    "careful": {"steering": [{"vector": "everywhere", "op": "ablate", "layers": [2]}], "probes": ["truthfulness"]}
}
MONITORS = {"busy": {"sae": "random-l2", "feature": 3}}


@dataclass(frozen=True)
class Server:
    """A running server; `log` is what it printed."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    sae: Path

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120, trust_env=False, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=120, trust_env=False, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return httpx.delete(f"{self.url}{path}", timeout=120, trust_env=False, **options)

    def chat(self, content: str, **fields: Any) -> dict[str, Any]:
        body = {"model": "harbor", "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
        answer = self.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result


def make_sae(folder: Path) -> Path:
    """A SAELens v6 folder for layer 2, with the maximal activations of its features."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    weights = {
        "W_enc": rng.normal(size=(D_MODEL, N_FEATURES)),
        "W_dec": rng.normal(size=(N_FEATURES, D_MODEL)),
        "b_enc": np.zeros(N_FEATURES),
        "b_dec": np.zeros(D_MODEL),
    }
    save_file({name: tensor.astype(np.float32) for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    save_file({"max_act": np.linspace(1, 3, N_FEATURES).astype(np.float32)}, folder / "feature_stats.safetensors")
    config = {
        "architecture": "standard",
        "d_in": D_MODEL,
        "d_sae": N_FEATURES,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "harbor"},
    }
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_vector(folder: Path) -> None:
    """A vector on every layer."""
    folder.mkdir()
    rng = np.random.default_rng(6)
    rows = {layer: rng.normal(size=D_MODEL).astype(np.float32) for layer in range(6)}
    vector = Vector("everywhere", Direction(rows), None, SITE, None, tuple(rows), {}, None, {})
    save_vector(vector, folder / "everywhere.safetensors")


@contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[Server]:
    """A server of Harbor with its own artefacts and ours, started as a user starts it; `options` come last.

    variables: of the environment, beside those that are there.
    """
    sae = make_sae(folder / "saes" / "random-l2")
    make_vector(folder / "vectors")
    (folder / "presets.json").write_text(json.dumps(PRESETS), encoding="utf-8")
    (folder / "monitors.json").write_text(json.dumps(MONITORS), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pilothouse.cli.main", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--vectors", str(vectors_dir()), "--vectors", str(folder / "vectors"), "--probes", str(probes_dir())]
    command += ["--saes", str(sae.parent), "--default-probes", "truthfulness", "--admin-key", ADMIN_KEY]
    command += ["--presets", str(folder / "presets.json"), "--monitors", str(folder / "monitors.json")]
    command += ["--records", f"sqlite:///{folder / 'records.sqlite'}", *options]
    log = folder / "server.log"
    with log.open("wb") as out:
        environment = {**os.environ, "TORCH_LOGS": "recompiles", **variables}
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


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if server.get("/health").status_code == 200 and "Probe:" in server.log.read_text(errors="replace"):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{server.log.read_text(errors='replace')[-6000:]}")
