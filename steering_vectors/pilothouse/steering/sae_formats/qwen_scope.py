"""Qwen Scope: ``SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer{n}.sae.pt``, a file a layer, saved by torch.

W_enc [d_sae, d_in] and W_dec [d_in, d_sae], each the transpose of what SAELens calls so, b_enc and b_dec. Top-k; b_dec
is not subtracted from the input. The layer is in the file's name, model and k in the repository's.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import (
    Facts,
    SaeFormat,
    Source,
    make_sae,
    not_alone,
    refuse_factor,
    rows,
    vector,
)
from pilothouse.steering.sae_formats.sidecar import settle
from pilothouse.steering.sae_formats.tensors import TorchFile

KEY = "qwen-scope"
FILE = re.compile(r"layer([0-9]{1,6})\.sae\.pt")
REPOSITORY = re.compile(r"(SAE-Res-([A-Za-z0-9.-]+)-W[0-9]+K-L0_([0-9]+))")


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.parent, file) for file in files if FILE.fullmatch(file.name)]


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    file = TorchFile(source.weights)
    d_sae, d_in = len(vector(file, "b_enc")), len(vector(file, "b_dec"))
    rows(file, "W_enc", d_sae, d_in, axis=0)
    named = FILE.fullmatch(source.weights.name)
    repositories = REPOSITORY.findall(source.path)
    repository, model, k = repositories[-1] if repositories else (None, None, None)
    stem = source.weights.name.split(".")[0]
    activation = "topk" if k is None else f"topk (k = {k})"
    facts = Facts(
        name=stem if repository is None else f"{repository}-{stem}",
        place=settle(
            source.sidecar,
            layer=int(named[1]) if named else None,
            model=None if model is None else f"Qwen/{model}",
            # Only SAEs of the residual stream ("SAE-Res") have files of this name.
            residual=named is not None,
        ),
        d_in=d_in,
        d_sae=d_sae,
        architecture="topk",
        activation=activation,
        decoder=rows(file, "W_dec", d_sae, d_in, axis=1),
        reading=not_alone(activation),
        config={},
        alone=len(_find(source.folder)) == 1,
    )
    return make_sae(KEY, source, facts)


FORMAT = SaeFormat(KEY, "Qwen Scope", "layer{n}.sae.pt", _find, _load)
