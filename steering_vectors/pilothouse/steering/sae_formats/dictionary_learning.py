"""dictionary_learning: ``ae.pt``, saved by torch, and ``config.json`` with `trainer` (what it is) and `buffer`.

`trainer.dict_class` says which tensors there are. AutoEncoder, AutoEncoderNew, GatedAutoEncoder, AutoEncoderTopK and
BatchTopKSAE have encoder.weight [d_sae, d_in] and decoder.weight [d_in, d_sae]; JumpReluAutoEncoder and
MatryoshkaBatchTopKSAE have W_enc [d_in, d_sae] and W_dec [d_sae, d_in]. The bias that is subtracted from the input has
a name of its own in each; AutoEncoderNew and JumpReluAutoEncoder subtract none. Some versions of the library multiply
activations by the norm of the decoder's row and divide by it before they decode; here they are as they are decoded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import (
    Facts,
    SaeFormat,
    Source,
    folder_or_file,
    jumprelu,
    make_sae,
    not_alone,
    refuse_factor,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.config import read_config, read_size, read_text
from pilothouse.steering.sae_formats.saelens import gated
from pilothouse.steering.sae_formats.sidecar import Place, settle
from pilothouse.steering.sae_formats.tensors import TensorFile, TorchFile
from pilothouse.steering.sae_rows import Encoder

KEY = "dictionary-learning"
CONFIG = "config.json"
WEIGHTS = "ae.pt"


@dataclass(frozen=True)
class _Class:
    """Tensors of a `dict_class`. `linear`: matrices are named and laid out like torch's Linear; `bias`: the decoder's
    [d_in], which most subtract from the input."""

    activation: str
    linear: bool
    bias: str
    subtracts: bool = True


CLASSES = {
    "AutoEncoder": _Class("relu", linear=True, bias="bias"),
    "AutoEncoderNew": _Class("relu", linear=True, bias="decoder.bias", subtracts=False),
    "GatedAutoEncoder": _Class("gated relu", linear=True, bias="decoder_bias"),
    "AutoEncoderTopK": _Class("topk", linear=True, bias="b_dec"),
    "BatchTopKSAE": _Class("jumprelu", linear=True, bias="b_dec"),
    "JumpReluAutoEncoder": _Class("jumprelu", linear=False, bias="b_dec", subtracts=False),
    "MatryoshkaBatchTopKSAE": _Class("jumprelu", linear=False, bias="b_dec"),
}


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    return folder_or_file(path, WEIGHTS)


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    config = read_config(source.folder / CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise ArtefactError(f"{CONFIG} has no object trainer")
    where = f"{CONFIG}: trainer"
    name = read_text(trainer, "dict_class", where)
    if name not in CLASSES:
        raise ArtefactError(f"{where}: dict_class {name!r} is unknown; those that are known: {', '.join(CLASSES)}")
    kind, place = CLASSES[name], _place(source, trainer, where)
    d_in, d_sae = read_size(trainer, "activation_dim", where), read_size(trainer, "dict_size", where)
    file = TorchFile(source.weights)
    matrix = "decoder.weight" if kind.linear else "W_dec"
    activation = f"topk (k = {trainer['k']})" if kind.activation == "topk" and "k" in trainer else kind.activation
    facts = Facts(
        name=_name(source.folder),
        place=place,
        d_in=d_in,
        d_sae=d_sae,
        architecture=name,
        activation=activation,
        decoder=rows(file, matrix, d_sae, d_in, axis=1 if kind.linear else 0),
        reading=_reading(file, name, kind, d_in, d_sae, activation),
        config=config,
    )
    return make_sae(KEY, source, facts)


def _place(source: Source, trainer: Mapping[str, Any], where: str) -> Place:
    layer = trainer.get("layer")
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise ArtefactError(f"{where}: layer must be a whole number, not {layer!r}: only SAEs of one place can steer")
    submodule = read_text(trainer, "submodule_name", where)
    if submodule is None:
        in_path = re.findall(r"(?:^|/)(resid_post_layer_[0-9]{1,6})(?=/)", source.path)
        submodule = in_path[-1] if in_path else None
    if submodule is not None:
        named = re.fullmatch(r"resid_post_layer_([0-9]{1,6})", submodule)
        if not named:
            raise ArtefactError(
                f"{where}: the SAE is at {submodule!r}; only residual-stream SAEs (resid_post_layer_L) can steer"
            )
        if layer not in (None, int(named[1])):
            raise ArtefactError(f"{where}: layer {layer} contradicts {submodule!r}")
        layer = int(named[1])
    model = read_text(trainer, "lm_name", where)
    return settle(source.sidecar, layer=layer, model=model, residual=submodule is not None)


def _reading(file: TensorFile, name: str, kind: _Class, d_in: int, d_sae: int, activation: str) -> Encoder | str:
    columns = rows(file, "encoder.weight" if kind.linear else "W_enc", d_sae, d_in, axis=0 if kind.linear else 1)
    decoder_bias = vector(file, kind.bias, d_in)
    shift = decoder_bias if kind.subtracts else None
    if kind.activation == "gated relu":
        tensors = (vector(file, tensor, d_sae) for tensor in ("gate_bias", "mag_bias", "r_mag"))
        bias, threshold, gain = gated(*tensors)
        return Encoder(columns, bias, threshold, shift, gain=gain)
    bias = vector(file, "encoder.bias" if kind.linear else "b_enc", d_sae)
    if kind.activation == "topk":
        return not_alone(activation)
    if kind.activation == "relu":
        return Encoder(columns, bias, np.zeros_like(bias), shift)
    if name != "JumpReluAutoEncoder" and _unfitted(vector(file, "threshold", d_sae, scalar=True)):
        return f"the threshold of {name}, by which it reads outside training, was never fitted (it is below 0)"
    return Encoder(columns, bias, jumprelu(file, "threshold", d_sae), shift)


def _unfitted(threshold: Float32) -> bool:
    # Training begins with -1.
    return bool((threshold < 0).any())


def _name(folder: Path) -> str:
    # Runs are numbered below the folder that says where they belong.
    return f"{folder.parent.name}-{folder.name}" if re.fullmatch(r"trainer_[0-9]+", folder.name) else folder.name


FORMAT = SaeFormat(KEY, "dictionary_learning", f"{CONFIG} + {WEIGHTS}", _find, _load)
