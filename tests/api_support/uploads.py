"""Files as clients send them, and how they are sent."""

from typing import Any

import httpx
import numpy as np

from api_support.artefacts import D_MODEL, MAX_ACTS, artefact, rows
from api_support.client import HEADERS, Client
from pilothouse.api.registry import Registry

VECTORS = "/v1/steering_vectors"
SAES = "/v1/saes"
RELOAD = "/v1/registry/reload"


def vector(name: str, seed: int, **card: Any) -> bytes:
    return artefact("vector", {"name": name, **card}, rows(seed, "layer.1"))


def sae(seed: int = 6, **card: Any) -> bytes:
    """A SAE in the native form, its rows from `seed`."""
    rng = np.random.default_rng(seed)
    tensors = {
        "W_dec": rng.standard_normal((4, D_MODEL)).astype(np.float32),
        "W_enc": rng.standard_normal((4, D_MODEL)).astype(np.float32),
        "b_enc": np.zeros(4, np.float32),
        "threshold": np.full(4, 0.5, np.float32),
        "max_act": MAX_ACTS,
    }
    settings = {"name": "sent", "layer": 2, "architecture": "jumprelu", "activation": "jumprelu", **card}
    return artefact("sae", settings, tensors)


async def post(client: Client, path: str, content: bytes, **params: Any) -> httpx.Response:
    return await client.http.post(path, content=content, headers=HEADERS, params=params)


def store(registry: Registry, data: bytes, replaces: bool = False) -> None:
    """Upload a vector without HTTP."""
    with registry.uploads.staged() as staged:
        staged.write_bytes(data)
        registry.add("vectors", registry.read_upload("vectors", staged), staged, replaces)
