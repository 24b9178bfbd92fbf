"""Gemma Scope: ``layer_20/width_16k/average_l0_71/params.npz``.

W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc and threshold [d_sae], b_dec [d_in], float32. JumpReLU; b_dec is not
subtracted from the input. The file says neither layer, model nor site: the path does, which has the repository's name
(``gemma-scope-2b-pt-res``). SAEs of attention and MLP outputs have the same layout.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import (
    Facts,
    SaeFormat,
    Source,
    folder_or_file,
    jumprelu,
    make_sae,
    refuse_factor,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.sidecar import settle
from pilothouse.steering.sae_formats.tensors import NpzFile
from pilothouse.steering.sae_rows import Encoder

KEY = "gemma-scope"
WEIGHTS = "params.npz"
REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-([a-z]+)")
RESIDUAL = "res"


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    return folder_or_file(path, WEIGHTS)


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    file = NpzFile(source.weights)
    bias, shift = vector(file, "b_enc"), vector(file, "b_dec")
    d_sae, d_in = len(bias), len(shift)
    encoder = Encoder(rows(file, "W_enc", d_sae, d_in, axis=1), bias, jumprelu(file, "threshold", d_sae))
    layer, model = _from_path(source.path)
    facts = Facts(
        name=_name(source.folder),
        place=settle(source.sidecar, layer=layer, model=model, residual=model is not None),
        d_in=d_in,
        d_sae=d_sae,
        architecture="jumprelu",
        activation="jumprelu",
        decoder=rows(file, "W_dec", d_sae, d_in, axis=0),
        reading=encoder,
        config={},
    )
    return make_sae(KEY, source, facts)


def _from_path(path: str) -> tuple[int | None, str | None]:
    parts = path.split("/")
    if "embedding" in parts:
        raise ArtefactError("the SAE reads the embedding's output, before any site")
    layers = [int(part.removeprefix("layer_")) for part in parts if re.fullmatch(r"layer_[0-9]{1,6}", part)]
    layer = layers[-1] if layers else None
    repositories = REPOSITORY.findall(path)
    if not repositories:
        return layer, None
    size, kind, site = repositories[-1]
    if site != RESIDUAL:
        raise ArtefactError(f"the path says that the SAE reads {site!r}; only residual-stream SAEs ('res') can steer")
    return layer, f"google/gemma-2-{size}" + ("-it" if kind == "it" else "")


def _name(folder: Path) -> str:
    named = [part for part in folder.parts[-3:] if re.match(r"(layer|width|average_l0|canonical)(_|$)", part)]
    return "-".join(named) or folder.name


FORMAT = SaeFormat(KEY, "Gemma Scope", WEIGHTS, _find, _load)
