"""Native files, written with safetensors' own functions and never with what reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_support.layouts import D_IN, D_SAE, Tensors, plain_sae

CARD: Mapping[str, Any] = {
    "format": 1,
    "kind": "sae",
    "name": "mine",
    "model": "org/tiny",
    "layer": 3,
    "architecture": "jumprelu",
    "activation": "jumprelu",
    "config": {"from": "a test"},
}


def native_tensors() -> Tensors:
    """All tensors of a sound file; feature 0 was never seen active."""
    plain = plain_sae(D_IN, D_SAE)
    return {
        "W_dec": plain["W_dec"].clone(),
        "W_enc": plain["W_enc"].T.contiguous(),
        "b_enc": plain["b_enc"],
        "threshold": plain["threshold"],
        "max_act": torch.arange(D_SAE) / 2,
    }


def write_native(path: Path, tensors: Tensors | None = None, **changes: Any) -> Path:
    """Write a file; keys of `changes` are changed in its card, or left out where they are ``...``."""
    card = {key: value for key, value in {**CARD, **changes}.items() if value is not ...}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(native_tensors() if tensors is None else tensors, path, metadata={"pilothouse": json.dumps(card)})
    return path
