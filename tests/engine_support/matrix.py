"""Every entry of `steering` that the interface has words for, and files for them to name."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from api_support.artefacts import artefact
from safetensors.numpy import save

from pilothouse.core.config import ServerConfig
from pilothouse.core.edits import OPERATIONS
from pilothouse.core.sites import Float32, ModelShape

D_MODEL, D_SAE, FEATURE = 64, 6, 4
SHAPE = ModelShape("tiny", D_MODEL, 4, (0, 1, 2, 3))
N_PROMPT = 20

SOURCES = ("vector", "sae", "inline")
UNITS = (None, "raw", "max_act", "resid_norm")
POSITIONS: tuple[Any, ...] = (
    "all",
    "prompt",
    "generation",
    "last_prompt",
    {"from": -9, "to": -2},
    {"from": -3, "to": N_PROMPT + 3},
)
GATES = (None, "token", "rest")

AMOUNTS = {"add": 2.0, "set": 6.0, "clamp": 4.0, "min_clamp": 6.0}
"""Raw `strength` of each operation that has a value, large enough to show."""
SHARES = {"ablate": 0.9, "cap": 0.8}
CAPPED = (0.1, 0.3)
"""Raw `min` and `max`: hardly any component lies between them already."""
RESID_NORM = {1: 20.0, 2: 25.0}
MAX_ACT = 5.0
TYPICAL = {"raw": 1.0, "max_act": MAX_ACT, "resid_norm": 20.0}
"""About how much a unit is, so that every case is of a like size."""


@dataclass(frozen=True)
class Files:
    """The tensors of the files, as random as can be; `probes` by name, as their files have them."""

    vector: Mapping[int, Float32]
    inline: Mapping[int, Float32]
    sae: Mapping[str, Float32]
    probes: Mapping[str, Mapping[str, Float32]]
    calibration: Mapping[str, Mapping[str, Any]]


def write_files(folder: Path) -> tuple[ServerConfig, Files]:
    """One of each kind: a vector and an inline direction of two layers, an SAE, and three probes. `early` is read at no
    layer behind any edit's first, `late` behind it, and `watch` behind all edits."""
    rng = np.random.default_rng(71)
    files = Files(
        vector={layer: _normal(rng, D_MODEL) for layer in (1, 2)},
        inline=inline_rows(),
        sae={
            "W_enc": _normal(rng, D_MODEL, D_SAE, scale=1 / 8),
            "W_dec": _normal(rng, D_SAE, D_MODEL),
            "b_enc": _normal(rng, D_SAE),
            "b_dec": _normal(rng, D_MODEL),
            "threshold": np.abs(_normal(rng, D_SAE)),
            "max_act": np.arange(1, D_SAE + 1, dtype=np.float32) * (MAX_ACT / (FEATURE + 1)),
        },
        probes={
            "early": _probe(rng, (0, 1), standardised=True),
            "late": _probe(rng, (1, 3), standardised=False),
            "watch": _probe(rng, (3,), standardised=True),
        },
        calibration={"early": {"kind": "platt", "a": 0.5, "b": 0.25}, "late": {"kind": "platt", "a": 1.5, "b": -0.5}},
    )
    _write(folder, files)
    vectors, probes, saes = ((str(folder / kind),) for kind in ("vectors", "probes", "saes"))
    return ServerConfig(vectors=vectors, probes=probes, saes=saes), files


def entries() -> list[dict[str, Any]]:
    """Every operation, source, unit, selector and gate, refused or not; every third keeps norms."""
    rng = np.random.default_rng(72)
    found = []
    for op, source, unit, positions, gate in itertools.product(OPERATIONS, SOURCES, UNITS, POSITIONS, GATES):
        entry = entry_of(op, source, unit)
        entry["positions"] = positions
        if rng.integers(3) == 0:
            entry["preserve_norm"] = True
        if gate is not None:
            above = bool(rng.integers(2))
            early = gate == "token" or bool(rng.integers(2))
            score = float(rng.uniform(0.35, 0.65)) if gate == "token" else float(rng.uniform(0.6, 0.97))
            entry["gate"] = {
                "probe": "early" if early else "late",
                "when": "above" if above else "below",
                "threshold": score if above else 1.0 - score,
                "scope": gate,
            }
        found.append(entry)
    return found


def entry_of(op: str, source: str, unit: str | None) -> dict[str, Any]:
    """An entry of that operation, its amounts about as large in every unit."""
    entry: dict[str, Any] = {"op": op}
    match source:
        case "vector":
            entry |= {"vector": "direction", "layers": "all"}
        case "sae":
            entry |= {"sae": "features", "feature": FEATURE}
        case "inline":
            entry |= {"inline": {"layers": {str(n): encoded(row) for n, row in inline_rows().items()}}}
    if unit is not None:
        entry["unit"] = unit
    counts_activation = source == "sae" and op in ("add", "clamp", "min_clamp")
    typical = TYPICAL[unit or ("max_act" if counts_activation else "raw")]
    if op in AMOUNTS:
        entry["strength"] = AMOUNTS[op] / typical
    else:
        entry["strength"] = SHARES[op]
    if op == "cap":
        entry |= {"min": CAPPED[0] / typical, "max": CAPPED[1] / typical}
    return entry


def refused(entry: Mapping[str, Any]) -> bool:
    """Whether the interface's own words refuse it: ablating has no unit; clamping is for an SAE's features; a largest
    activation is a feature's, a residual norm a vector's."""
    op, unit = entry["op"], entry.get("unit")
    return (
        (op == "ablate" and unit is not None)
        or (op in ("clamp", "min_clamp") and "sae" not in entry)
        or (unit == "max_act" and "sae" not in entry)
        or (unit == "resid_norm" and "vector" not in entry)
    )


def inline_rows() -> dict[int, Float32]:
    """The direction that requests bring along."""
    rng = np.random.default_rng(73)
    return {layer: _normal(rng, D_MODEL) for layer in (1, 3)}


def encoded(row: Float32) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Float32:
    return rng.normal(scale=scale, size=shape).astype(np.float32)


def _probe(rng: np.random.Generator, layers: tuple[int, ...], *, standardised: bool) -> dict[str, Float32]:
    """Of a size whose logits are a few units apart."""
    tensors = {"bias": _normal(rng, 1, scale=0.5)}
    for layer in layers:
        tensors[f"weight.{layer}"] = _normal(rng, D_MODEL, scale=1 / 20)
        if standardised:
            tensors[f"mean.{layer}"] = _normal(rng, D_MODEL)
            tensors[f"std.{layer}"] = rng.uniform(0.5, 2.0, D_MODEL).astype(np.float32)
    return tensors


def _write(folder: Path, files: Files) -> None:
    for kind in ("vectors", "probes", "saes/features"):
        (folder / kind).mkdir(parents=True)
    vector = {"name": "direction", "default_layers": [2], "resid_norm": {str(n): x for n, x in RESID_NORM.items()}}
    rows = {f"layer.{layer}": row for layer, row in files.vector.items()}
    (folder / "vectors" / "direction.safetensors").write_bytes(artefact("vector", vector, rows))
    for name, tensors in files.probes.items():
        card: dict[str, Any] = {"name": name, "label": "yes", "alarm": "high", "aggregate": "max", "threshold": 0.5}
        card["token_calibration"] = files.calibration.get(name)
        (folder / "probes" / f"{name}.safetensors").write_bytes(artefact("probe", card, tensors))
    config = {
        "architecture": "jumprelu",
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "normalize_activations": "none",
        "apply_b_dec_to_input": True,
        "metadata": {"hook_name": "blocks.2.hook_resid_post"},
    }
    (folder / "saes" / "features" / "cfg.json").write_text(json.dumps(config))
    (folder / "saes" / "features" / "sae_weights.safetensors").write_bytes(save(dict(files.sae)))
