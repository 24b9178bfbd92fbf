"""Gemma Scope 2: ``resid_post/layer_17_width_16k_l0_medium/`` with ``config.json`` and ``params.safetensors``.

w_enc [d_in, d_sae], w_dec [d_sae, d_in], b_enc and threshold [d_sae], b_dec [d_in]. JumpReLU (`architecture`
"jump_relu"); b_dec is not subtracted from the input. `hf_hook_point_in` ("model.layers.L.output") is the site. Some
folders were published without ``config.json``: their path says the same
(``gemma-scope-2-4b-pt/resid_post/layer_17...``).
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
    jumprelu,
    make_sae,
    refuse_factor,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.config import read_config, read_size, read_text
from pilothouse.steering.sae_formats.hooks import layer_of_module
from pilothouse.steering.sae_formats.sidecar import Place, settle
from pilothouse.steering.sae_formats.tensors import SafetensorsFile
from pilothouse.steering.sae_rows import Encoder

KEY = "gemma-scope-2"
CONFIG = "config.json"
WEIGHTS = "params.safetensors"


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    return folder_or_file(path, WEIGHTS)


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    config = read_config(source.folder / CONFIG) if (source.folder / CONFIG).exists() else {}
    place = _place(source, config)
    file = SafetensorsFile(source.weights)
    if "affine_skip_connection" in file.shapes:
        raise ArtefactError("the file holds affine_skip_connection: it is a transcoder, not an SAE")
    bias, shift = vector(file, "b_enc"), vector(file, "b_dec")
    d_sae, d_in = len(bias), len(shift)
    if config.get("width") is not None and read_size(config, "width", CONFIG) != d_sae:
        raise ArtefactError(f"{CONFIG} says width {config['width']}, but b_enc has {d_sae} features")
    encoder = Encoder(rows(file, "w_enc", d_sae, d_in, axis=1), bias, jumprelu(file, "threshold", d_sae))
    facts = Facts(
        name=source.folder.name,
        place=place,
        d_in=d_in,
        d_sae=d_sae,
        architecture="jumprelu",
        activation="jumprelu",
        decoder=rows(file, "w_dec", d_sae, d_in, axis=0),
        reading=encoder,
        config=config,
    )
    return make_sae(KEY, source, facts)


def _place(source: Source, config: Mapping[str, Any]) -> Place:
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ArtefactError(f"{CONFIG}: architecture {config['architecture']!r} is unknown; it must be 'jump_relu'")
    if (kind := read_text(config, "type", CONFIG)) not in (None, "sae"):
        raise ArtefactError(f"{CONFIG}: type {kind!r} is not an SAE of one place")
    hook = read_text(config, "hf_hook_point_in", CONFIG)
    written = read_text(config, "hf_hook_point_out", CONFIG)
    if written not in (None, hook):
        raise ArtefactError(f"{CONFIG}: the SAE reads {hook!r} and writes {written!r}: it is a transcoder")
    named, model, site = _from_path(source.path)
    if hook is not None:
        layer = layer_of_module(hook, f"{CONFIG}: hf_hook_point_in")
        if named not in (None, layer):
            raise ArtefactError(f"{CONFIG}: hf_hook_point_in {hook!r} contradicts the path, which says layer {named}")
        named, site = layer, "resid_post"
    if site not in (None, "resid_post"):
        raise ArtefactError(f"the path says that the SAE reads {site!r}; only residual-stream SAEs can steer")
    declared = read_text(config, "model_name", CONFIG)
    if declared is not None:
        model = _published(declared)
    return settle(source.sidecar, layer=named, model=model, residual=site is not None)


def _from_path(path: str) -> tuple[int | None, str | None, str | None]:
    layers = re.findall(r"(?:^|/)layer_([0-9]{1,6})(?=_|/)", path)
    repositories = re.findall(r"gemma-scope-2-([0-9]+[bm](?:-[a-z]+)?)", path)
    sites = re.findall(r"(?:^|/)(resid_post|attn_out|mlp_out|transcoder|clt|crosscoder)(?:_[a-z]+)*(?=/)", path)
    return (
        int(layers[-1]) if layers else None,
        _published(f"gemma-3-{repositories[-1]}") if repositories else None,
        sites[-1] if sites else None,
    )


def _published(model: str) -> str:
    """The name under which Google published the model that the configuration names, such as gemma-v3-4b-pt."""
    name = model.rsplit("/", 1)[-1].replace("gemma-v3-", "gemma-3-")
    return "google/" + (name.removesuffix("-pt") if "270m" in name else name)


FORMAT = SaeFormat(KEY, "Gemma Scope 2", f"{CONFIG} + {WEIGHTS}", _find, _load)
