"""What a benchmark's requests name: random vectors, probes and an SAE of a model's width, in files.

Content does not change the cost; where it lies does, so vectors and probes lie on every layer that has a site.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pilothouse.core.directions import Direction
from pilothouse.core.sites import SITE, Float32
from pilothouse.probing import Probe, save_probe
from pilothouse.steering import Vector, save_vector
from pilothouse.steering.sae_formats.saelens import CONFIG, WEIGHTS

N_PROBES = 64
GATE = "bench-gate"
"""The probe that gates ask; on the first layer alone, since one that acts at once must be read before its edits."""
SAE = "bench-sae"
FEATURES_PER_DIMENSION = 4


def vector_name(number: int) -> str:
    """What the registered vector `number` is called."""
    return f"bench-{number}"


def probe_name(number: int) -> str:
    """What the probe `number` is called."""
    return f"bench-{number}"


@dataclass(frozen=True)
class Artefacts:
    """The folders that a server is given."""

    vectors: Path
    probes: Path
    saes: Path

    @property
    def arguments(self) -> list[str]:
        """Flags of `pilothouse serve`."""
        # Records are kept, as by default, but not among the user's own.
        records = f"sqlite:///{self.vectors.parent / 'records.sqlite'}"
        folders = ["--vectors", str(self.vectors), "--probes", str(self.probes), "--saes", str(self.saes)]
        return [*folders, "--records", records]


def make_artefacts(
    folder: Path, width: int, layers: Sequence[int], n_vectors: int, seed: int, sae: bool = False
) -> Artefacts:
    """Everything that variants name, in folders of its own below `folder`.

    width: of the stream; layers: those that vectors and probes lie on; sae: one too, on the middle one of them.
    """
    made = Artefacts(folder / "vectors", folder / "probes", folder / "saes")
    for path in (made.vectors, made.probes, made.saes):
        path.mkdir(parents=True)
    rng = np.random.default_rng(seed)

    def rows(scale: float, where: Sequence[int]) -> dict[int, Float32]:
        return {layer: (scale * rng.standard_normal(width, np.float32)).astype(np.float32) for layer in where}

    for i in range(n_vectors):
        name = vector_name(i)
        vector = Vector(name, Direction(rows(0.01, layers)), None, SITE, None, tuple(layers), {}, None, {})
        save_vector(vector, made.vectors / f"{name}.safetensors")
    for name in (*map(probe_name, range(N_PROBES)), GATE):
        weights = rows(0.1, layers[:1] if name == GATE else layers)
        save_probe(Probe(name, "true", "low", "worst_ema", 0.5, weights), made.probes / f"{name}.safetensors")
    if sae:
        _make_sae(made.saes / SAE, width, layers[len(layers) // 2], rng)
    return made


def _make_sae(folder: Path, width: int, layer: int, rng: np.random.Generator) -> None:
    """A JumpReLU SAE in SAELens's layout; encoder and decoder have columns and rows of about length 1."""
    n_features = FEATURES_PER_DIMENSION * width
    tensors = {
        "W_enc": rng.normal(size=(width, n_features)) / np.sqrt(width),
        "W_dec": rng.normal(size=(n_features, width)) / np.sqrt(width),
        "b_enc": np.zeros(n_features),
        "b_dec": np.zeros(width),
        "threshold": np.full(n_features, 0.1),
    }
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "d_in": width,
        "d_sae": n_features,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
    }
    folder.mkdir()
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
