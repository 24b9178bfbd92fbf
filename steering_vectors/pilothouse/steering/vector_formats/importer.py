"""Which format a file is of, told by its content rather than its name, and the vector in it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pilothouse.core.artefact import check_name, has_card, same_model
from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import load_torch, read_foreign, refuse_pickle, sha256_hex
from pilothouse.steering.vector import Vector
from pilothouse.steering.vector_file import vector_from_bytes
from pilothouse.steering.vector_formats.caa import SUFFIXES as TORCH_SUFFIXES
from pilothouse.steering.vector_formats.caa import layer_files, read_caa
from pilothouse.steering.vector_formats.control_vector import MAGIC, read_control_vector
from pilothouse.steering.vector_formats.found import Found, ImportOptions, as_vector, keep_layers
from pilothouse.steering.vector_formats.plain import read_safetensors, read_torch
from pilothouse.steering.vector_formats.svec import read_svec

Read = Callable[[Path], Found]

READABLE = "our own and plain safetensors, control vectors (.gguf), CAA (.pt), .svec"

_BY_SUFFIX: dict[str, Read] = {
    ".gguf": read_control_vector,
    ".safetensors": read_safetensors,
    ".svec": read_svec,
    ".json": read_svec,
}


def import_vector(path: Path, options: ImportOptions | None = None) -> Vector:
    """The vector in a file of any format that is read here, or in a folder of CAA's files.

    A file of ours keeps its card. Of any other the card's `source` says format, file, SHA-256, what its layers mean and
    the offset. ArtefactError names the file and what is wrong with it; pickles are refused.
    """
    options = options or ImportOptions()
    try:
        if path.is_dir():
            return as_vector(_read_folder(path), path, options)
        data = read_foreign(path)
        if _is_ours(path, data):
            return _native(path, data, options)
        return as_vector(_reader(path, data)(path), path, options)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _read_folder(folder: Path) -> Found:
    if layer_files(folder):
        return read_caa(folder)
    files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _BY_SUFFIX)
    hint = f": name one of {', '.join(files)}" if files else f", and nothing else that is read here: {READABLE}"
    raise ArtefactError(f"the folder has no .pt files of one layer each{hint}")


def _is_ours(path: Path, data: bytes) -> bool:
    return _is_safetensors(path, data) and has_card(data)


def _is_safetensors(path: Path, data: bytes) -> bool:
    return path.suffix.lower() == ".safetensors" or (
        data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8
    )


def _reader(path: Path, data: bytes) -> Read:
    suffix = path.suffix.lower()
    refuse_pickle(path, data)
    if data.startswith(MAGIC):
        return read_control_vector
    if _is_safetensors(path, data):
        return read_safetensors
    if suffix in TORCH_SUFFIXES:
        return read_torch if isinstance(load_torch(data), dict) else read_caa
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if data.lstrip()[:1] == b"{":
        return read_svec
    raise ArtefactError(f"not a steering vector of a known format: read here are {READABLE}")


def _native(path: Path, data: bytes, options: ImportOptions) -> Vector:
    vector = vector_from_bytes(data)
    if options.layer_offset:
        raise ArtefactError("the file is ours already, and says which layers it is for: --layer-offset is not for it")
    if options.model is not None and vector.model and not same_model(options.model, vector.model):
        raise ArtefactError(f"it was made for model {vector.model!r}, not for {options.model!r}")
    kept = keep_layers(tuple(sorted(vector.direction.layers)), options.layers)
    if options == ImportOptions():
        return vector
    source = {"format": "pilothouse", "file": path.name, "sha256": sha256_hex(data)}
    if "source" in vector.card:
        source["source"] = vector.card["source"]
    changed = replace(
        vector,
        name=check_name(options.name) if options.name else vector.name,
        model=options.model or vector.model,
        direction=Direction({layer: vector.direction.layers[layer] for layer in kept}),
        default_layers=tuple(layer for layer in vector.default_layers if layer in kept) or kept,
        resid_norm={layer: norm for layer, norm in vector.resid_norm.items() if layer in kept},
        card={**vector.card, "source": source},
    )
    return replace(changed, card=changed.full_card)
