"""``pilothouse.json`` beside an SAE's weights: what the publisher's format does not say.

    {"format": "gemma-scope", "name": "gs-20", "model": "google/gemma-2-2b", "layer": 20, "site": "resid_post",
     "norm_scaling_factor": 0.25}

Every key is optional. `model` stands above what the files and their path say, since it is often meant so: an SAE of the
base model used on the tuned one. `layer` may add to them, but not contradict them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, ValidationError

from pilothouse.core.artefact import Name, first_problem, parse_json, read_artefact
from pilothouse.core.errors import ArtefactError

SIDECAR = "pilothouse.json"
FormatKey = Literal[
    "pilothouse",
    "saelens",
    "gemma-scope",
    "gemma-scope-2",
    "llama-scope",
    "goodfire",
    "qwen-scope",
    "dictionary-learning",
    "sparsify",
]


class Sidecar(BaseModel):
    """The keys of ``pilothouse.json``. format: needed where several fit, or a file was renamed; norm_scaling_factor:
    what the stream was multiplied by in training."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    format: FormatKey | None = None
    name: Name | None = None
    model: str | None = None
    layer: NonNegativeInt | None = None
    site: Literal["resid_post"] | None = None
    norm_scaling_factor: PositiveFloat | None = None


@dataclass(frozen=True)
class Place:
    """Where an SAE belongs: the stream after block `layer` of `model`."""

    layer: int
    model: str


def read_sidecar(folder: Path) -> Sidecar:
    """The folder's sidecar, an empty one when there is none; ArtefactError names the key that is wrong."""
    path = folder / SIDECAR
    if not path.exists():
        return Sidecar()
    data = read_artefact(path)
    parse_json(data)
    try:
        return Sidecar.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise ArtefactError(f"{SIDECAR}: {first_problem(error)}") from None


def settle(sidecar: Sidecar, *, layer: int | None, model: str | None, residual: bool) -> Place:
    """The place of an SAE whose files and path say `layer` and `model`, and whether it is of the residual stream.

    ArtefactError names the keys that ``pilothouse.json`` must give for what they do not say.
    """
    if layer is not None and sidecar.layer not in (None, layer):
        raise ArtefactError(f"{SIDECAR} says layer {sidecar.layer}, but the SAE's own files or path say {layer}")
    layer = sidecar.layer if layer is None else layer
    model = sidecar.model or model
    missing = {
        '"layer": L (the decoder block after which it reads)': layer is None,
        '"model": "ORGANISATION/NAME"': model is None,
        '"site": "resid_post" (if it reads the residual stream)': not residual and sidecar.site is None,
    }
    if any(missing.values()):
        wanted = ", ".join(key for key, absent in missing.items() if absent)
        raise ArtefactError(f"neither files nor path say where the SAE belongs: write {wanted} into {SIDECAR} there")
    assert layer is not None
    assert model is not None
    return Place(layer, model)
