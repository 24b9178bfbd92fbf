"""What a SAELens cfg.json says: version 6 keeps the hook under `metadata`, earlier versions have flat keys.

An SAE that could only be steered wrongly is refused here, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae_formats.base import not_alone
from pilothouse.steering.sae_formats.config import read_factor, read_flag, read_size, read_text
from pilothouse.steering.sae_formats.hooks import layer_of_hook, layer_of_module

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
READABLE = {"standard": "relu", "gated": "gated relu", "jumprelu": "jumprelu"}
"""Architectures whose features are read one by one, and the name of their activation."""
COMPETING = ("topk", "abstopk")
TRAINING = ("batchtopk", "matryoshka_batchtopk")
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
    subtracts_b_dec: bool
    activation: str
    why_not_read: str | None


def parse_config(cfg: Mapping[str, Any]) -> SaeConfig:
    """Read cfg.json; ArtefactError for what is missing, of the wrong type or not steerable."""
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ArtefactError("cfg.json: metadata must be an object")
    flat = {RENAMED.get(key, key): value for key, value in {**cfg, **metadata}.items()}
    architecture = _architecture(cfg)
    activation = _activation(cfg, architecture)
    return SaeConfig(
        layer=_layer(flat),
        d_in=read_size(cfg, "d_in", "cfg.json"),
        d_sae=read_size(cfg, "d_sae", "cfg.json"),
        architecture=architecture,
        model=read_text(flat, "model_name", "cfg.json"),
        scaled=_scaled(cfg.get("normalize_activations")),
        factor=read_factor(flat.get("norm_scaling_factor"), "cfg.json: norm_scaling_factor"),
        # SAELens's other classes do not know the key, and go on without it.
        unit_decoder=architecture not in READABLE and cfg.get("rescale_acts_by_decoder_norm") is True,
        subtracts_b_dec=read_flag(cfg, "apply_b_dec_to_input", "cfg.json", default=True),
        activation=activation,
        why_not_read=_why_not_read(architecture, activation),
    )


def _architecture(cfg: Mapping[str, Any]) -> str:
    architecture = cfg.get("architecture") or "standard"
    if architecture not in ARCHITECTURES:
        raise ArtefactError(
            f"cfg.json: architecture {architecture!r} cannot be steered by decoder rows; those that can: "
            + ", ".join(ARCHITECTURES)
        )
    # Before version 6 top-k was an activation function of a standard SAE.
    return "topk" if _activation_key(cfg) == "topk" else str(architecture)


def _activation_key(cfg: Mapping[str, Any]) -> object:
    return cfg.get("activation_fn_str") or cfg.get("activation_fn") or "relu"


def _activation(cfg: Mapping[str, Any], architecture: str) -> str:
    if architecture in READABLE:
        named = _activation_key(cfg)
        return READABLE[architecture] if named == "relu" else str(named)
    kwargs = cfg.get("activation_fn_kwargs")
    k = cfg.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None)
    return architecture if k is None else f"{architecture} (k = {k})"


def _why_not_read(architecture: str, activation: str) -> str | None:
    if architecture in COMPETING:
        return not_alone(activation)
    if architecture in TRAINING:
        return (
            f"the weights are a training checkpoint of {architecture}, whose activation depends on the batch: save "
            "them with save_inference_model"
        )
    if architecture not in READABLE:
        return f"the activations of {architecture} are found in steps that each depend on all features"
    if activation != READABLE[architecture]:
        return f"the activation {activation!r} is not relu"
    return None


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
        named.add(layer_of_module(module, "cfg.json: hf_hook_name"))
    if len(named) > 1:
        raise ArtefactError(f"cfg.json: hook_name {hook!r} and hf_hook_name {module!r} are different layers")
    return named.pop()


def _layer_of_hook(hook: object, flat: Mapping[str, Any]) -> int:
    layer = layer_of_hook(hook, "cfg.json")
    block = int(str(hook).split(".")[1])
    if flat.get("hook_layer", block) not in (block, None):
        raise ArtefactError(f"cfg.json: hook_layer {flat['hook_layer']!r} contradicts {hook!r}")
    return layer
