"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``.

encoder.weight [d_sae, d_in], decoder.weight [d_in, d_sae], encoder.bias, decoder.bias. The stream is multiplied by
sqrt(d_in) / dataset_average_activation_norm.in before it is read, and what is decoded divided by it. JumpReLU with one
threshold for all features, which is in units of the stream as it is (its authors compare it after dividing the
pre-activation by that factor), so against activations of the scaled stream it is multiplied by the factor.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import (
    Facts,
    SaeFormat,
    Source,
    folder_or_file,
    make_sae,
    not_alone,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.config import read_config, read_factor, read_flag, read_size, read_text
from pilothouse.steering.sae_formats.hooks import layer_of_hook
from pilothouse.steering.sae_formats.sidecar import SIDECAR, Place, settle
from pilothouse.steering.sae_formats.tensors import SafetensorsFile, TensorFile
from pilothouse.steering.sae_rows import Encoder

KEY = "llama-scope"
CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
NORMS = "dataset_average_activation_norm"


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    return folder_or_file(path, WEIGHTS, up=2)


def _load(source: Source) -> Sae:
    config = read_config(source.folder / CONFIG)
    place = _place(source, config)
    d_in, d_sae = read_size(config, "d_model", CONFIG), _d_sae(config)
    factor = _factor(source, config, d_in)
    activation = (read_text(config, "act_fn", CONFIG) or "jumprelu").lower()
    threshold = _threshold(config, activation)
    file = SafetensorsFile(source.weights)
    facts = Facts(
        name=source.folder.name,
        place=place,
        d_in=d_in,
        d_sae=d_sae,
        architecture=activation,
        activation=activation,
        decoder=rows(file, "decoder.weight", d_sae, d_in, axis=1, divisor=factor),
        reading=_reading(file, config, d_in, d_sae, factor, activation, threshold),
        config=config,
        settings=json.dumps({"norm_scaling_factor": factor, "jump_relu_threshold": threshold}),
    )
    return make_sae(KEY, source, facts)


def _place(source: Source, config: Mapping[str, Any]) -> Place:
    hook = read_text(config, "hook_point_in", CONFIG)
    written = read_text(config, "hook_point_out", CONFIG)
    if written not in (None, hook):
        raise ArtefactError(f"{CONFIG}: the SAE reads {hook!r} and writes {written!r}: it is a transcoder")
    layer = None if hook is None else layer_of_hook(hook, CONFIG)
    named = re.findall(r"Llama3_1-8B-Base-L([0-9]+)([A-Z]+)-[0-9]+x", source.path)
    if named and named[-1][1] != "R":
        raise ArtefactError(f"the path says that the SAE reads {named[-1][1]!r}; only residual-stream SAEs can steer")
    if named and layer not in (None, int(named[-1][0])):
        raise ArtefactError(f"{CONFIG}: hook_point_in {hook!r} contradicts the path, which says layer {named[-1][0]}")
    layer = int(named[-1][0]) if named and layer is None else layer
    model = "meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base-L" in source.path else None
    return settle(source.sidecar, layer=layer, model=model, residual=hook is not None or bool(named))


def _d_sae(config: Mapping[str, Any]) -> int:
    if config.get("d_sae") is None and config.get("expansion_factor") is not None:
        return read_size(config, "d_model", CONFIG) * read_size(config, "expansion_factor", CONFIG)
    return read_size(config, "d_sae", CONFIG)


def _factor(source: Source, config: Mapping[str, Any], d_in: int) -> float:
    normalisation = read_text(config, "norm_activation", CONFIG) or "dataset-wise"
    told = source.sidecar.norm_scaling_factor
    if normalisation == "inference":
        # Its authors folded the factor in.
        found: float | None = 1.0
    elif normalisation == "dataset-wise":
        norms = config.get(NORMS)
        inward = norms.get("in") if isinstance(norms, dict) else None
        norm = read_factor(inward, f"{CONFIG}: {NORMS}.in")
        found = None if norm is None else math.sqrt(d_in) / norm
        outward = read_factor(norms.get("out") if isinstance(norms, dict) else None, f"{CONFIG}: {NORMS}.out")
        if norm is not None and outward not in (None, norm):
            raise ArtefactError(f"{CONFIG}: {NORMS} differs between in and out, which an SAE of one place cannot have")
    else:
        raise ArtefactError(
            f"{CONFIG}: norm_activation {normalisation!r} rescales each token by its own norm, so a decoder row has no "
            "fixed size in the stream"
        )
    if found is not None and told is not None and not math.isclose(found, told, rel_tol=1e-6):
        raise ArtefactError(f"{SIDECAR} says norm_scaling_factor {told}, but {CONFIG} gives {found}")
    factor = told if found is None else found
    if factor is None:
        raise ArtefactError(
            f"the SAE was trained on a rescaled stream and {CONFIG} has no {NORMS}.in: put norm_scaling_factor, "
            f"sqrt(d_model) over that norm, into {SIDECAR}"
        )
    return factor


def _threshold(config: Mapping[str, Any], activation: str) -> float:
    if activation != "jumprelu":
        return 0.0
    value = config.get("jump_relu_threshold")
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ArtefactError(f"{CONFIG}: jump_relu_threshold must be a number not below 0, not {value!r}")
    return float(value)


def _reading(
    file: TensorFile,
    config: Mapping[str, Any],
    d_in: int,
    d_sae: int,
    factor: float,
    activation: str,
    threshold: float,
) -> Encoder | str:
    columns = rows(file, "encoder.weight", d_sae, d_in, axis=0)
    bias = vector(file, "encoder.bias", d_sae)
    has_shift = read_flag(config, "use_decoder_bias", CONFIG, default=True)
    shift = vector(file, "decoder.bias", d_in) if has_shift else None
    if read_flag(config, "use_glu_encoder", CONFIG, default=False):
        return "its encoder is a gated linear unit: a sigmoid of a second dot product multiplies the first"
    if activation not in ("relu", "jumprelu"):
        return not_alone(activation)
    subtracts = read_flag(config, "apply_decoder_bias_to_pre_encoder", CONFIG, default=False)
    thresholds = np.full(d_sae, threshold * factor, dtype=np.float32)
    return Encoder(columns, bias, thresholds, shift if subtracts else None, factor)


FORMAT = SaeFormat(KEY, "Llama Scope", f"{CONFIG} + {WEIGHTS}", _find, _load)
