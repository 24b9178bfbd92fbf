"""Our own form of an SAE: one safetensors file with a card of kind `sae`, all of it in the raw stream's own units.

W_dec [d_sae, d_in]: what one unit of a feature adds to the raw stream h [d_in]. Where features can be read, also W_enc
[d_sae, d_in], b_enc [d_sae] and threshold [d_sae]: with x = h . W_enc[i] + b_enc[i] the activation of feature i is x
where x > threshold[i], else 0, and there is no bias, factor or gate besides. Optional is max_act [d_sae], the largest
activation that was seen of each feature, 0 where none was. float32, float16 or bfloat16.

The card says the rest, so neither the file's name nor its path mean anything, and no sidecar is needed.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from pilothouse.core.artefact import CARD_KEY, FormatVersion, Name, RawArtefact, parse_json
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.base import SaeFormat, Source, check_tensor, refuse_factor, rows, vector
from pilothouse.steering.sae_formats.sidecar import SIDECAR
from pilothouse.steering.sae_formats.tensors import SafetensorsFile
from pilothouse.steering.sae_rows import Encoder

KEY = "pilothouse"
KIND = "sae"
SUFFIX = ".safetensors"
DECODER, ENCODER, BIAS, THRESHOLD, MAX_ACT = "W_dec", "W_enc", "b_enc", "threshold", "max_act"
MATRICES = (DECODER, ENCODER)
READING = (ENCODER, BIAS, THRESHOLD)
DTYPES = ("F32", "F16", "BF16")
_TENSORS = (DECODER, *READING, MAX_ACT)
_MAX_HEADER = 100_000_000
"""The longest header that safetensors reads."""

Text = Annotated[str, Field(min_length=1)]


class SaeCard(BaseModel):
    """The card of a native SAE. layer: the 0-based decoder block after which it reads; architecture, activation: in
    words; why_not_read: a sentence on why features can only be added, where there is no encoder; config: where it came
    from."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    format: FormatVersion
    kind: Literal["sae"]
    name: Name
    model: str | None = None
    layer: NonNegativeInt
    site: Literal["resid_post"] = "resid_post"
    architecture: Text
    activation: Text
    why_not_read: Text | None = None
    config: dict[str, Any] | None = None


def read_native(path: Path) -> Sae:
    """The SAE in one file, under whatever name the file has.

    Card, shapes, and all tensors but the matrices are checked; rows are when they are read. ArtefactError names what is
    wrong.
    """
    file = SafetensorsFile(path)
    if CARD_KEY not in file.metadata:
        raise ArtefactError(f"the file has no card: its metadata has no key {CARD_KEY!r}")
    raw = parse_json(file.metadata[CARD_KEY])
    if not isinstance(raw, dict):
        raise ArtefactError("the card must be a JSON object")
    card = RawArtefact({}, raw).checked_card(SaeCard)
    readable = _check_tensors(file, card)
    d_sae, d_in = _sizes(file)
    decoder = rows(file, DECODER, d_sae, d_in, axis=0)
    encoder = None
    if readable:
        columns = rows(file, ENCODER, d_sae, d_in, axis=0)
        encoder = Encoder(columns, vector(file, BIAS, d_sae), _not_negative(file, THRESHOLD, d_sae))
    return Sae(
        name=card.name,
        layer=card.layer,
        d_in=d_in,
        d_sae=d_sae,
        architecture=card.architecture,
        model=card.model,
        card=card.model_dump(),
        decoder=decoder,
        format=KEY,
        activation=card.activation,
        encoder=encoder,
        why_not_read=card.why_not_read,
        max_acts=_not_negative(file, MAX_ACT, d_sae) if MAX_ACT in file.shapes else None,
    )


def is_native(path: Path) -> bool:
    """Whether there is a file of this form at `path`, called ``*.safetensors``; only its header is read."""
    return path.suffix == SUFFIX and path.is_file() and why_not(path) is None


def why_not(path: Path) -> str | None:
    """Why a file is not of this form, told by its header alone, to follow "the file ..."; None when it is."""
    try:
        metadata = _metadata(path)
        if metadata is None:
            return _disguised(path) or "is not a safetensors file, or was cut short"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if CARD_KEY not in metadata:
        return "has no card of an SAE"
    try:
        card = parse_json(str(metadata[CARD_KEY]))
    except ArtefactError:
        # Whose it is cannot be told, so it is taken for an SAE and refused when it is loaded, rather than passed over.
        return None
    kind = card.get("kind") if isinstance(card, dict) else KIND
    return None if kind == KIND else f"has a card of kind {kind!r}, not {KIND!r}"


def _find(path: Path) -> Sequence[tuple[Path, Path]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.parent, file) for file in files if is_native(file)]


def _metadata(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(os.fstat(file.fileno()).st_size - 8, _MAX_HEADER):
            return None
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return None
    if not isinstance(header, dict):
        return None
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _disguised(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        return "is an archive, of numpy (.npz) or torch (.pt)"
    is_pickle = head[:1] == b"\x80" and b"\x02" <= head[1:] <= b"\x05"
    return "is a pickle, which could run code when it is read" if is_pickle else None


def _load(source: Source) -> Sae:
    refuse_factor(source, FORMAT.title)
    sae, sidecar = read_native(source.weights), source.sidecar
    if sidecar.layer not in (None, sae.layer):
        raise ArtefactError(f"{SIDECAR} says layer {sidecar.layer}, but the card says {sae.layer}")
    return replace(sae, name=source.called(sae.name), model=sidecar.model or sae.model)


def _check_tensors(file: SafetensorsFile, card: SaeCard) -> bool:
    """Whether the file's features can be read; ArtefactError for tensors too few, too many, or against the card."""
    if unknown := sorted(set(file.shapes) - set(_TENSORS)):
        raise ArtefactError(f"tensor {unknown[0]!r} is unknown: an SAE has the tensors {', '.join(_TENSORS)}")
    for name, dtype in file.dtypes.items():
        if dtype not in DTYPES:
            raise ArtefactError(f"tensor {name!r} must be float32, float16 or bfloat16, not {dtype}")
    missing = [name for name in READING if name not in file.shapes]
    if missing and len(missing) < len(READING):
        raise ArtefactError(f"the file has no tensor {missing[0]}: {', '.join(READING)} come together or not at all")
    if missing and card.why_not_read is None:
        raise ArtefactError(f"the file has no {ENCODER}, so its card must say under why_not_read why there is none")
    if not missing and card.why_not_read is not None:
        raise ArtefactError(f"the card says why_not_read, but the file has {ENCODER}: leave one of them out")
    return not missing


def _sizes(file: SafetensorsFile) -> tuple[int, int]:
    """d_sae and d_in. A tensor of one number a feature says how many there are, so that a transposed matrix shows."""
    shape = check_tensor(file, DECODER)
    if len(shape) != 2 or 0 in shape:
        raise ArtefactError(f"{DECODER} is {list(shape)}, but must be [d_sae, d_in]")
    counted = next((name for name in (BIAS, THRESHOLD, MAX_ACT) if name in file.shapes), None)
    d_sae = shape[0] if counted is None else len(vector(file, counted))
    if d_sae not in shape:
        raise ArtefactError(f"{DECODER} is {list(shape)}, but {counted} has {d_sae} features: it must be [d_sae, d_in]")
    return d_sae, shape[1] if shape[0] == d_sae else shape[0]


def _not_negative(file: SafetensorsFile, name: str, d_sae: int) -> Float32:
    values = vector(file, name, d_sae)
    if (values < 0).any():
        raise ArtefactError(f"{name} must not be negative, but is for feature {int(np.argmax(values < 0))}")
    return values


FORMAT = SaeFormat(KEY, "Pilothouse", f"NAME{SUFFIX} with a card of kind {KIND!r}", _find, _load, by_card=True)
