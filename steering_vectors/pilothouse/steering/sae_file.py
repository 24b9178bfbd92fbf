"""SAELens folders: ``cfg.json`` and ``sae_weights.safetensors``.

The largest activation of each feature is not part of the format. It is taken from a tensor ``max_act`` [d_sae] in
``sae_weights.safetensors``, ``feature_stats.safetensors`` or ``max_acts.safetensors``, the first that has one
(``sparsity.safetensors`` holds firing rates, which are something else).
"""

import logging
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from pilothouse.core.artefact import check_name, parse_json, read_artefact
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae import Decoder, Sae
from pilothouse.steering.sae_config import SaeConfig, parse_config, read_factor

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
STATISTICS = (WEIGHTS, "feature_stats.safetensors", "max_acts.safetensors")
SCALER = "activation_scaler.json"
FLOATS = ("F64", "F32", "F16", "BF16")

log = logging.getLogger(__name__)


def load_sae(folder: Path, name: str | None = None) -> Sae:
    """The SAE in a SAELens folder, called like the folder unless `name` says otherwise.

    Only headers and statistics are read; decoder rows are read when they are asked for. ArtefactError names the
    folder and why the SAE cannot steer.
    """
    try:
        return _load(folder, check_name(folder.resolve().name if name is None else name))
    except SafetensorError as error:
        raise ArtefactError(f"{folder}: not a safetensors file: {error}") from None
    except (ArtefactError, OSError) as error:
        raise ArtefactError(f"{folder}: {error}") from None


def load_saes(folder: Path) -> dict[str, Sae]:
    """`folder` itself when it is an SAE, else every subfolder that is one, by name."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is not a folder")
    if (folder / CONFIG).exists():
        found = [load_sae(folder)]
    else:
        found = [load_sae(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}"))]
    return {sae.name: sae for sae in found}


def _load(folder: Path, name: str) -> Sae:
    card = parse_json(read_artefact(folder / CONFIG))
    if not isinstance(card, dict):
        raise ArtefactError("cfg.json must be a JSON object")
    config = parse_config(card)
    decoder = Decoder(
        folder / WEIGHTS, transposed=_check_weights(folder / WEIGHTS, config), divisor=_divisor(folder, config)
    )
    return Sae(
        name=name,
        layer=config.layer,
        d_in=config.d_in,
        d_sae=config.d_sae,
        architecture=config.architecture,
        model=config.model,
        card=card,
        decoder=decoder,
        max_acts=_max_acts(folder, config.d_sae),
        unit_decoder=config.unit_decoder,
    )


def _check_weights(path: Path, config: SaeConfig) -> bool:
    """Whether W_dec is stored transposed, which shapes alone decide; ArtefactError when it fits neither way."""
    with safe_open(path, framework="pt") as weights:
        names = set(weights.keys())
        if "W_dec" not in names:
            raise ArtefactError(f"{WEIGHTS} has no tensor W_dec")
        matrix = weights.get_slice("W_dec")
        if matrix.get_dtype() not in FLOATS:
            raise ArtefactError(f"W_dec must hold floating-point numbers, not {matrix.get_dtype()}")
        if "scaling_factor" in names and not (weights.get_tensor("scaling_factor") == 1).all():
            raise ArtefactError("scaling_factor, a fine-tuned factor per feature, must be folded into W_dec first")
        shape = tuple(matrix.get_shape())
    if shape == (config.d_sae, config.d_in):
        return False
    if shape == (config.d_in, config.d_sae):
        log.warning("%s holds W_dec as [d_in, d_sae]: its columns are taken for features", path)
        return True
    raise ArtefactError(f"W_dec is {list(shape)}, but cfg.json says d_sae {config.d_sae} and d_in {config.d_in}")


def _divisor(folder: Path, config: SaeConfig) -> float:
    """What decoder rows are divided by to be in the stream's units.

    `expected_average_only_in` trains on the stream times a factor; SAELens folds it away by dividing W_dec by it
    (`SAE.fold_activation_norm_scaling_factor`), which leaves the activations as they are.
    """
    if not config.scaled:
        return 1.0
    factor = config.factor
    if factor is None and (folder / SCALER).exists():
        scaler = parse_json(read_artefact(folder / SCALER))
        value = scaler.get("scaling_factor") if isinstance(scaler, dict) else None
        factor = read_factor(value, f"{SCALER}: scaling_factor")
    if factor is None:
        raise ArtefactError(
            "the SAE was trained on a rescaled stream (normalize_activations expected_average_only_in) and the factor "
            "is not in the file: fold it into the weights, or put norm_scaling_factor into cfg.json"
        )
    return factor


def _max_acts(folder: Path, d_sae: int) -> Float32 | None:
    for file in STATISTICS:
        if not (folder / file).exists():
            continue
        with safe_open(folder / file, framework="pt") as statistics:
            if "max_act" not in statistics.keys():  # noqa: SIM118 - not a mapping
                continue
            values = statistics.get_tensor("max_act")
        if tuple(values.shape) != (d_sae,):
            raise ArtefactError(f"{file}: max_act is {list(values.shape)}, but there are {d_sae} features")
        found: Float32 = values.float().numpy()
        if not (np.isfinite(found).all() and (found >= 0).all()):
            raise ArtefactError(f"{file}: max_act must be finite and not negative")
        return found
    return None
