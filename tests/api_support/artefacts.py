"""Small vectors, probes and an SAE in files, and the numbers that went into them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pilothouse.core.config import ServerConfig
from pilothouse.core.sites import Float32, ModelShape

D_MODEL = 8
N_LAYERS = 5
SHAPE = ModelShape("tiny", D_MODEL, N_LAYERS, (0, 1, 2, 3, 4))
ADMIN = "a-key"

HONEST = {"name": "honest", "default_layers": [2], "resid_norm": {"1": 10.0, "2": 20.0}, "method": "mean_difference"}
CALM = {"name": "calm"}

TRUTH: dict[str, Any] = {
    "name": "truthfulness",
    "label": "true",
    "alarm": "low",
    "aggregate": "worst_ema",
    "threshold": 0.43,
    "calibration": {"kind": "platt", "a": 0.5, "b": 0.25},
}
RISK: dict[str, Any] = {"name": "risk", "label": "made up", "alarm": "high", "aggregate": "max", "threshold": 0.875}
EARLY: dict[str, Any] = {"name": "early", "label": "true", "alarm": "low", "aggregate": "prompt_end", "threshold": 0.5}

MAX_ACTS = np.array([0.0, 3.0, 5.0, 0.5], dtype=np.float32)


def rows(seed: int, *keys: str) -> dict[str, Float32]:
    """Random rows [d_model] float32."""
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(D_MODEL).astype(np.float32) for key in keys}


HONEST_ROWS = rows(1, "layer.1", "layer.2", "layer.3")
CALM_ROWS = rows(2, "layer.3")
TRUTH_ROWS = rows(3, "weight.1", "weight.3", "mean.1", "mean.3") | {
    "std.1": np.linspace(0.5, 2, D_MODEL, dtype=np.float32),
    "std.3": np.linspace(2, 1, D_MODEL, dtype=np.float32),
    "bias": np.array([0.75], dtype=np.float32),
}
RISK_ROWS = rows(4, "weight.2")
EARLY_ROWS = rows(5, "weight.4")
SAE_ENCODER = np.random.default_rng(7).standard_normal((D_MODEL, len(MAX_ACTS))).astype(np.float32)
SAE_BIASES = np.random.default_rng(8).standard_normal(D_MODEL + len(MAX_ACTS)).astype(np.float32)
SAE_DECODER = np.random.default_rng(6).standard_normal((len(MAX_ACTS), D_MODEL)).astype(np.float32)


def artefact(kind: str, card: Mapping[str, Any], tensors: Mapping[str, Float32]) -> bytes:
    """A safetensors file with its card."""
    text = json.dumps({"format": 1, "kind": kind, **card})
    return bytes(save(dict(tensors), metadata={"pilothouse": text}))


def write_all(folder: Path, **config: Any) -> ServerConfig:
    """All artefacts under `folder`, and the configuration that names them."""
    for kind, card, tensors in (
        ("vector", HONEST, HONEST_ROWS),
        ("vector", CALM, CALM_ROWS),
        ("probe", TRUTH, TRUTH_ROWS),
        ("probe", RISK, RISK_ROWS),
        ("probe", EARLY, EARLY_ROWS),
    ):
        path = folder / f"{kind}s" / f"{card['name']}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(artefact(kind, card, tensors))
    write_sae(folder / "saes" / "features", {"max_act": MAX_ACTS})
    write_sae(folder / "saes" / "bare", {})
    write_sae(folder / "saes" / "topk", {"max_act": MAX_ACTS}, architecture="topk", k=2)
    paths = {kind: (str(folder / kind),) for kind in ("vectors", "probes", "saes")}
    return ServerConfig(**{**paths, "admin_key": ADMIN, **config})


def write_sae(folder: Path, more: Mapping[str, Float32], **settings: Any) -> None:
    """A SAELens folder at layer 2."""
    folder.mkdir(parents=True)
    cfg = {
        "architecture": "standard",
        "d_in": D_MODEL,
        "d_sae": len(MAX_ACTS),
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.2.hook_resid_post"},
        **settings,
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))
    tensors = {
        "W_dec": SAE_DECODER,
        "W_enc": SAE_ENCODER,
        "b_dec": SAE_BIASES[:D_MODEL],
        "b_enc": SAE_BIASES[D_MODEL:],
        **more,
    }
    (folder / "sae_weights.safetensors").write_bytes(save(tensors))
