"""What a SAELens cfg.json says: version 6 keeps the hook under `metadata`, earlier versions have flat keys.

An SAE that could only be steered wrongly is refused here, with the reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pilothouse.core.errors import ArtefactError

ARCHITECTURES = (
    "standard",
    "gated",
    "jumprelu",
    "topk",
    "abstopk",
    "batchtopk",
    "matryoshka_batchtopk",
    "matching_pursuit",
)
RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
PER_TOKEN = ("layer_norm", "constant_norm_rescale")


@dataclass(frozen=True)
class SaeConfig:
    """The part of a cfg.json that steering depends on. `layer` is the block after which the SAE reads the stream."""

    layer: int
    d_in: int
    d_sae: int
    architecture: str
    model: str | None
    scaled: bool
    """The weights are in units of the stream times a factor that is not folded into them."""
    factor: float | None
    unit_decoder: bool


def parse_config(cfg: Mapping[str, Any]) -> SaeConfig:
    """Read cfg.json; ArtefactError for what is missing, of the wrong type or not steerable."""
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ArtefactError("cfg.json: metadata must be an object")
    flat = {RENAMED.get(key, key): value for key, value in {**cfg, **metadata}.items()}
    model = flat.get("model_name")
    if model is not None and not isinstance(model, str):
        raise ArtefactError("cfg.json: model_name must be a string")
    return SaeConfig(
        layer=_layer(flat),
        d_in=_size(cfg, "d_in"),
        d_sae=_size(cfg, "d_sae"),
        architecture=_architecture(cfg),
        model=model,
        scaled=_scaled(cfg.get("normalize_activations")),
        factor=read_factor(flat.get("norm_scaling_factor"), "cfg.json: norm_scaling_factor"),
        unit_decoder=cfg.get("rescale_acts_by_decoder_norm") is True,
    )


def read_factor(value: object, what: str) -> float | None:
    """A factor by which activations were multiplied: None, or a positive number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ArtefactError(f"{what} must be a positive number, not {value!r}")
    return float(value)


def _size(cfg: Mapping[str, Any], key: str) -> int:
    value = cfg.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArtefactError(f"cfg.json: {key} must be a positive whole number, not {value!r}")
    return value


def _architecture(cfg: Mapping[str, Any]) -> str:
    architecture = cfg.get("architecture") or "standard"
    if architecture in ARCHITECTURES:
        return str(architecture)
    raise ArtefactError(
        f"cfg.json: architecture {architecture!r} cannot be steered by decoder rows; those that can: "
        + ", ".join(ARCHITECTURES)
    )


def _scaled(normalize: object) -> bool:
    # Before version 6 a boolean stood for the expected-average scaling.
    if normalize in (None, False, "none"):
        return False
    if normalize in (True, "expected_average_only_in"):
        return True
    if normalize in PER_TOKEN:
        raise ArtefactError(
            f"cfg.json: normalize_activations {normalize!r} rescales every token by its own norm, so a decoder row has "
            "no fixed size in the stream"
        )
    raise ArtefactError(
        f"cfg.json: normalize_activations {normalize!r} must be folded into the weights before the SAE can steer"
    )


def _layer(flat: Mapping[str, Any]) -> int:
    hook = flat.get("hook_name")
    module = flat.get("hf_hook_name")
    if flat.get("hook_head_index") is not None or flat.get("reshape_activations", "none") != "none":
        raise ArtefactError(f"cfg.json: the SAE reads attention heads ({hook}), not the residual stream")
    if hook is None and module is None:
        raise ArtefactError("cfg.json: no hook_name says which layer the SAE belongs to")
    named = {_layer_of_hook(hook, flat)} if hook is not None else set()
    if module is not None:
        named.add(_layer_of_module(module))
    if len(named) > 1:
        raise ArtefactError(f"cfg.json: hook_name {hook!r} and hf_hook_name {module!r} are different layers")
    return named.pop()


def _layer_of_hook(hook: object, flat: Mapping[str, Any]) -> int:
    match = re.fullmatch(r"blocks\.([0-9]{1,6})\.hook_resid_(pre|post)", str(hook))
    if not match:
        raise ArtefactError(
            f"cfg.json: the SAE is at {hook!r}; only residual-stream SAEs (blocks.L.hook_resid_post) can steer"
        )
    block = int(match[1])
    if flat.get("hook_layer", block) not in (block, None):
        raise ArtefactError(f"cfg.json: hook_layer {flat['hook_layer']!r} contradicts {hook!r}")
    if match[2] == "post":
        return block
    # The stream before block L is the stream after block L - 1.
    if block == 0:
        raise ArtefactError(f"cfg.json: {hook!r} is the embedding's output, before any site")
    return block - 1


def _layer_of_module(module: object) -> int:
    match = re.fullmatch(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks)\.([0-9]{1,6})(?:\.output)?", str(module))
    if not match:
        raise ArtefactError(f"cfg.json: hf_hook_name {module!r} is not the output of a decoder block")
    return int(match[1])
