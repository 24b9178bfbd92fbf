"""Contrastive activation addition (Rimsky et al. 2024): one ``torch.save`` of a tensor [d_model] a layer.

Read from the published code (`generate_vectors.py`, `llama_wrapper.py`): ``vec_layer_{L}_{model}.pt`` is the mean
difference of the output of the 0-based block L at the letter of the answer, and is added to that block's output after
the prompt. So no offset is needed, and ``"positions": "generation"`` steers where CAA does.
"""

import re
from pathlib import Path
from typing import Any

from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import as_row, load_torch, read_foreign, sha256_hex
from pilothouse.core.sites import Float32
from pilothouse.steering.vector_formats.found import Found, by_layer

SUFFIXES = {".pt", ".pth"}

CONVENTION = "the layer in the file's name is the 0-based block whose output was read, as in CAA's own files"


def read_caa(path: Path) -> Found:
    """The rows of one file, or of a folder of them; ArtefactError names the file that is wrong."""
    files = layer_files(path) if path.is_dir() else [path]
    numbered: list[tuple[int, str, Float32]] = []
    hints: dict[str, str] = {}
    digests: dict[str, str] = {}
    for file in files:
        try:
            data = read_foreign(file)
            numbered.append((layer_in_name(file), file.name, _row(load_torch(data))))
        except ArtefactError as error:
            raise ArtefactError(f"{file.name}: {error}" if path.is_dir() else str(error)) from None
        digests[file.name] = sha256_hex(data)
        if match := re.fullmatch(r"vec_layer_\d+_(.+)", file.stem):
            hints[match[1]] = file.name
    if len(hints) > 1:
        raise ArtefactError(f"the files are of different models: {' and '.join(sorted(hints.values()))}")
    return Found(
        format="CAA (torch)",
        convention=CONVENTION,
        rows=by_layer(numbered),
        sha256=digests if path.is_dir() else digests[path.name],
        method="mean_difference",
        facts={"model_hint": next(iter(hints), None), "trained_at": "the letter of the answer"},
    )


def layer_files(folder: Path) -> list[Path]:
    """The files in `folder` that torch may have written, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def layer_in_name(file: Path) -> int:
    """The layer that a file's name gives; ArtefactError when it gives none, or several."""
    named = re.findall(r"(?<![A-Za-z])layers?[._-]?([0-9]{1,6})(?![0-9])", file.stem, re.IGNORECASE)
    bare = re.fullmatch(r"[Ll]?([0-9]{1,6})", file.stem)
    layers = {int(digits) for digits in [*named, *([bare[1]] if bare else [])]}
    if len(layers) != 1:
        how = "several layers" if layers else "no layer"
        raise ArtefactError(f"the file's name {file.name!r} gives {how}: call it vec_layer_13.pt, for layer 13")
    return layers.pop()


def _row(content: Any) -> Float32:
    if not hasattr(content, "is_floating_point"):
        raise ArtefactError(f"the file must hold one tensor, not a {type(content).__name__}")
    return as_row("the tensor", content)
