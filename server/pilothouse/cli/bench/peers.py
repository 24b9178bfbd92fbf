"""Peers of the same run: each in a process of its own, every server stopped meanwhile."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilothouse.cli.bench.scenarios import Scenario

PATIENCE_SECONDS = 240.0
PEERS = "transformers"


def measure_peers(scenario: Scenario, model: Path, tokens_out: int) -> Mapping[str, list[float] | str]:
    """Tokens per second of each repeat by implementation, or why there are none. model: the folder of the model."""
    given: dict[str, Any] = {
        "model": str(model),
        "random": scenario.model.random,
        "dtype": scenario.model.dtype,
        "batch": scenario.batch,
        "tokens_in": scenario.tokens_in,
        "tokens_out": tokens_out,
    }
    command = [sys.executable, "-m", "pilothouse.cli.bench.peer", json.dumps(given)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {PEERS: f"took longer than {PATIENCE_SECONDS:.0f} seconds"}
    if done.returncode != 0:
        return {PEERS: f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"}
    found: dict[str, list[float] | str] = json.loads(done.stdout.splitlines()[-1])
    return found
