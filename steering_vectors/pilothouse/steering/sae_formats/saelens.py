"""SAELens folders: ``cfg.json`` and ``sae_weights.safetensors``, of version 6 and before.

W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in]; jumprelu has `threshold`, gated `b_gate`, `b_mag`
and `r_mag` [d_sae] in the place of b_enc. The largest activation of each feature is not part of the format. It is taken
from a tensor ``max_act`` [d_sae] in ``sae_weights.safetensors``, ``feature_stats.safetensors`` or
``max_acts.safetensors``, the first that has one (``sparsity.safetensors`` holds firing rates, something else).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import (
    STATISTICS,
    SaeFormat,
    Source,
    check_tensor,
    jumprelu,
    max_acts,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.config import read_config, read_factor
from pilothouse.steering.sae_formats.saelens_config import SaeConfig, parse_config
from pilothouse.steering.sae_formats.sidecar import SIDECAR
from pilothouse.steering.sae_formats.tensors import SafetensorsFile, TensorFile
from pilothouse.steering.sae_rows import Encoder

KEY = "saelens"
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    folder = path if path.is_dir() else path.parent
    if path not in (folder, folder / WEIGHTS, folder / CONFIG):
        return []
    # Half a folder is one too, and the loader says what is missing.
    is_one = (folder / WEIGHTS).exists() or ((folder / CONFIG).exists() and not (folder / "sae.safetensors").exists())
    return [(folder, folder / WEIGHTS)] if is_one else []


def _load(source: Source) -> Sae:
    name = source.called(source.folder.name)
    card = read_config(source.folder / CONFIG)
    config = parse_config(card)
    sidecar = source.sidecar
    if sidecar.layer not in (None, config.layer):
        raise ArtefactError(f"{SIDECAR} says layer {sidecar.layer}, but cfg.json says {config.layer}")
    factor = _factor(source, config)
    file = SafetensorsFile(source.weights)
    _check_scaling(file)
    decoder = rows(file, "W_dec", config.d_sae, config.d_in, axis=0, divisor=factor)
    columns_fit = rows(file, "W_enc", config.d_sae, config.d_in, axis=1)
    shift = vector(file, "b_dec", config.d_in)
    encoder = None
    if config.why_not_read is None:
        bias, threshold, gain = _activation(file, config)
        encoder = Encoder(columns_fit, bias, threshold, shift if config.subtracts_b_dec else None, factor, gain)
    return Sae(
        name=name,
        layer=config.layer,
        d_in=config.d_in,
        d_sae=config.d_sae,
        architecture=config.architecture,
        model=sidecar.model or config.model,
        card=card,
        decoder=decoder,
        format=KEY,
        activation=config.activation,
        encoder=encoder,
        why_not_read=config.why_not_read,
        max_acts=max_acts(source.folder, config.d_sae, (WEIGHTS, *STATISTICS)),
        unit_decoder=config.unit_decoder,
        settings=json.dumps({"norm_scaling_factor": factor}) if config.scaled else "",
    )


def _activation(file: TensorFile, config: SaeConfig) -> tuple[Float32, Float32, Float32 | None]:
    """Bias and threshold of every feature, and what its encoder is multiplied by."""
    if config.architecture == "gated":
        return gated(*(vector(file, name, config.d_sae) for name in ("b_gate", "b_mag", "r_mag")))
    bias = vector(file, "b_enc", config.d_sae)
    if config.architecture == "jumprelu":
        return bias, jumprelu(file, "threshold", config.d_sae), None
    return bias, np.zeros_like(bias), None


def gated(b_gate: Float32, b_mag: Float32, r_mag: Float32) -> tuple[Float32, Float32, Float32]:
    """A gated SAE as bias, threshold and gain of a JumpReLU, which it is, gate and magnitude having one encoder.

    With p = x . encoder the activation is relu(exp(r) p + b_mag) where p + b_gate > 0, that is where
    exp(r) p + b_mag > b_mag - exp(r) b_gate.
    """
    with np.errstate(over="ignore"):
        gain = np.exp(r_mag.astype(np.float64)).astype(np.float32)
        threshold = np.maximum(b_mag - gain.astype(np.float64) * b_gate, 0).astype(np.float32)
    if not (np.isfinite(gain).all() and np.isfinite(threshold).all()):
        raise ArtefactError("exp(r_mag), the gain of a gated SAE, is too large for float32")
    return b_mag, threshold, gain


def _check_scaling(file: TensorFile) -> None:
    if "scaling_factor" in file.shapes:
        check_tensor(file, "scaling_factor")
        if not (file.whole("scaling_factor") == 1).all():
            raise ArtefactError("scaling_factor, a fine-tuned factor per feature, must be folded into W_dec first")


def _factor(source: Source, config: SaeConfig) -> float:
    """What the stream is multiplied by before the SAE reads it, and decoder rows are divided by.

    `expected_average_only_in` trains on the stream times a factor; SAELens folds it away by dividing W_dec by it
    (`SAE.fold_activation_norm_scaling_factor`), which leaves the activations as they are.
    """
    told = source.sidecar.norm_scaling_factor
    if not config.scaled:
        if told is not None:
            raise ArtefactError(f"{SIDECAR} gives norm_scaling_factor, but by cfg.json the stream was not scaled")
        return 1.0
    factor = config.factor
    if factor is None and (source.folder / SCALER).exists():
        value = read_config(source.folder / SCALER).get("scaling_factor")
        factor = read_factor(value, f"{SCALER}: scaling_factor")
    if factor is not None and told not in (None, factor):
        raise ArtefactError(f"{SIDECAR} says norm_scaling_factor {told}, but the SAE's own files say {factor}")
    factor = told if factor is None else factor
    if factor is None:
        raise ArtefactError(
            "the SAE was trained on a rescaled stream (normalize_activations expected_average_only_in) and the factor "
            f"is not in the file: fold it into the weights, or put norm_scaling_factor into cfg.json or {SIDECAR}"
        )
    return factor


FORMAT = SaeFormat(KEY, "SAELens", f"{CONFIG} + {WEIGHTS}", _find, _load)
