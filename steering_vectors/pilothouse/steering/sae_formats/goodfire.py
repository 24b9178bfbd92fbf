"""Goodfire: one file such as ``Llama-3.1-8B-Instruct-SAE-l19.pth``, saved by torch.

encoder_linear.weight [d_sae, d_in], encoder_linear.bias, decoder_linear.weight [d_in, d_sae], decoder_linear.bias.
relu; the decoder's bias is not subtracted from the input. Model and layer are in the file's name only.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import Facts, SaeFormat, Source, make_sae, refuse_factor, rows, vector
from pilothouse.steering.sae_formats.sidecar import settle
from pilothouse.steering.sae_formats.tensors import TorchFile, names
from pilothouse.steering.sae_rows import Encoder

KEY = "goodfire"
TENSORS = {f"{side}_linear.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias")}
SUFFIXES = (".pt", ".pth")


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    if path.is_dir():
        return [(path, file) for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    return [(path.parent, path)] if path.suffix in SUFFIXES else []


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    file = TorchFile(source.weights)
    if not TENSORS & set(file.shapes):
        raise ArtefactError(
            f"a torch file of no known format: it has the tensors {names(file)}; Goodfire's have "
            f"{', '.join(sorted(TENSORS))}; other formats are known by the names of their files, such as ae.pt of "
            "dictionary_learning and layer0.sae.pt of Qwen Scope"
        )
    bias, shift = vector(file, "encoder_linear.bias"), vector(file, "decoder_linear.bias")
    d_sae, d_in = len(bias), len(shift)
    stem = source.weights.stem
    named = re.fullmatch(r"(.+)-SAE-l([0-9]{1,6})", stem)
    facts = Facts(
        name=stem,
        place=settle(
            source.sidecar,
            layer=int(named[2]) if named else None,
            model=named[1] if named else None,
            # They publish SAEs of the residual stream alone, under this name.
            residual=named is not None,
        ),
        d_in=d_in,
        d_sae=d_sae,
        architecture="standard",
        activation="relu",
        decoder=rows(file, "decoder_linear.weight", d_sae, d_in, axis=1),
        reading=Encoder(rows(file, "encoder_linear.weight", d_sae, d_in, axis=0), bias, np.zeros_like(bias)),
        config={},
        alone=len(_find(source.folder)) == 1,
    )
    return make_sae(KEY, source, facts)


FORMAT = SaeFormat(KEY, "Goodfire", "NAME.pt or NAME.pth", _find, _load, last_resort=True)
