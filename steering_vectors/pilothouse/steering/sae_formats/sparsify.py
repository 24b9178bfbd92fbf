"""EleutherAI sparsify: ``layers.{L}/`` with ``cfg.json`` and ``sae.safetensors``.

encoder.weight [d_sae, d_in], encoder.bias [d_sae], W_dec [d_sae, d_in] as it is, b_dec [d_in]. b_dec is subtracted from
the input (unless it transcodes), then relu, then the k strongest. The folder is called like the module whose output it
reads, so ``layers.{L}`` is the stream after the block; `model` is in ``config.json`` of the folder above.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import (
    Facts,
    SaeFormat,
    Source,
    folder_or_file,
    make_sae,
    not_alone,
    refuse_factor,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.config import read_config, read_flag, read_size, read_text
from pilothouse.steering.sae_formats.hooks import layer_of_module
from pilothouse.steering.sae_formats.sidecar import settle
from pilothouse.steering.sae_formats.tensors import SafetensorsFile

KEY = "sparsify"
CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
RUN_CONFIG = "config.json"
NOT_AN_SAE = {
    "transcode": "it predicts a module's output from its input: it is a transcoder",
    "skip_connection": "it has a linear way past the features",
    "embed_skip": "it also reads the embeddings",
    "gram_lookup": "it also reads a table of n-grams",
}


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    return folder_or_file(path, WEIGHTS)


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    config = read_config(source.folder / CONFIG)
    for key, why in NOT_AN_SAE.items():
        if read_flag(config, key, CONFIG, default=False):
            raise ArtefactError(f"{CONFIG}: {key}: {why}")
    d_in, d_sae = _sizes(config)
    file = SafetensorsFile(source.weights)
    if "W_skip" in file.shapes:
        raise ArtefactError(f"{WEIGHTS} holds W_skip: it has a linear way past the features")
    rows(file, "encoder.weight", d_sae, d_in, axis=0)
    vector(file, "encoder.bias", d_sae)
    vector(file, "b_dec", d_in)
    layer = _layer(source.folder.name)
    activation = f"{read_text(config, 'activation', CONFIG) or 'topk'} (k = {read_size(config, 'k', CONFIG)})"
    facts = Facts(
        name=source.folder.name,
        place=settle(source.sidecar, layer=layer, model=_model(source.folder.parent), residual=layer is not None),
        d_in=d_in,
        d_sae=d_sae,
        architecture="topk",
        activation=activation,
        decoder=rows(file, "W_dec", d_sae, d_in, axis=0),
        reading=not_alone(activation),
        config=config,
    )
    return make_sae(KEY, source, facts)


def _sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    d_in = read_size(config, "d_in", CONFIG)
    # 0 stands for as many as the expansion factor makes.
    if config.get("num_latents") in (None, 0):
        return d_in, d_in * read_size(config, "expansion_factor", CONFIG)
    return d_in, read_size(config, "num_latents", CONFIG)


def _layer(folder: str) -> int | None:
    if folder.startswith("embed") or re.search(r"(layers|h|blocks)[._][0-9]", folder):
        module = re.sub(r"^(.*layers)_([0-9]+)$", r"\1.\2", folder)
        return layer_of_module(module, "the SAE's folder")
    return None


def _model(run: Path) -> str | None:
    if not (run / RUN_CONFIG).is_file():
        return None
    return read_text(read_config(run / RUN_CONFIG), "model", RUN_CONFIG)


FORMAT = SaeFormat(KEY, "EleutherAI sparsify", f"{CONFIG} + {WEIGHTS}", _find, _load)
