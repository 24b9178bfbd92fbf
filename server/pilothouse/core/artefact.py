"""One artefact a file: rows of float numbers in safetensors and a JSON card under the metadata key `pilothouse`.

Bytes come from people who upload them, so everything is checked here before it is used, and every way in which they can
be wrong ends in ArtefactError.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

import numpy as np
import safetensors
from pydantic import BaseModel, Field, ValidationError
from safetensors.numpy import save

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32, ModelShape

CARD_KEY = "pilothouse"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
"""No separators of paths, and no `+`: metric labels join names by it."""

FormatVersion = Annotated[int, Field(ge=1, le=1)]


class Named(Protocol):
    """What a folder of artefacts is keyed by."""

    @property
    def name(self) -> str: ...


CardT = TypeVar("CardT", bound=BaseModel)
NamedT = TypeVar("NamedT", bound=Named)


@dataclass(frozen=True)
class RawArtefact:
    """What a file holds before it is known to be a vector or a probe: float32 rows by tensor name, and its card."""

    tensors: dict[str, Float32]
    card: dict[str, Any]

    def checked_card(self, card_type: type[CardT]) -> CardT:
        """The card as `card_type`; ArtefactError names the first key that is wrong."""
        try:
            return card_type.model_validate_json(json.dumps(self.card), strict=True)
        except ValidationError as error:
            raise ArtefactError(f"the card is not valid: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints, as ``key: what is wrong``."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def check_name(name: str) -> str:
    """`name` when it may name an artefact, else ArtefactError."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ArtefactError(
            f"{name!r} cannot be a name: use up to 128 letters, digits, dots, hyphens and underscores, "
            "beginning with a letter or digit"
        )
    return name


def parse_json(text: str | bytes) -> Any:
    """JSON by the letter: no NaN, no infinities (1e999 among them), nothing that could not be sent on as UTF-8."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"not valid JSON: {error}") from None
    return value


def parse_tensors(data: bytes) -> tuple[dict[str, Float32], dict[str, str]]:
    """Read a whole safetensors file: tensors [n] of F16, BF16 or F32 as float32 by name, and the metadata.

    ArtefactError for anything else, NaN and infinite numbers included.
    """
    entries, metadata = _deserialize(data)
    return {name: _row(name, entry) for name, entry in entries}, metadata


def parse_artefact(data: bytes) -> RawArtefact:
    """Read a whole safetensors file of ours: its tensors as by `parse_tensors`, and the card."""
    entries, metadata = _deserialize(data)
    if CARD_KEY not in metadata:
        raise ArtefactError(f"the file has no card: its metadata has no key {CARD_KEY!r}")
    card = parse_json(metadata[CARD_KEY])
    if not isinstance(card, dict):
        raise ArtefactError("the card must be a JSON object")
    return RawArtefact({name: _row(name, entry) for name, entry in entries}, card)


def has_card(data: bytes) -> bool:
    """Whether these are the bytes of a safetensors file with a card of ours; ArtefactError when it is damaged."""
    return CARD_KEY in _deserialize(data)[1]


def read_artefact(path: Path) -> bytes:
    """The bytes of a file; ArtefactError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}") from None


def write_artefact(path: Path, tensors: Mapping[str, Float32], card: Mapping[str, Any]) -> None:
    """Write float32 rows and their card; a reader meets the old file or the new one, never half of one."""
    text = json.dumps(card, ensure_ascii=False, allow_nan=False)
    rows = {name: np.ascontiguousarray(row, dtype=np.float32) for name, row in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(save(rows, metadata={CARD_KEY: text}))
    partial.replace(path)


def load_folder(folder: Path, load: Callable[[Path], NamedT]) -> dict[str, NamedT]:
    """Every ``*.safetensors`` in `folder` by name; ArtefactError names the file that is bad or a duplicate."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is not a folder")
    found: dict[str, NamedT] = {}
    for path in sorted(folder.glob("*.safetensors")):
        artefact = load(path)
        if artefact.name in found:
            raise ArtefactError(f"{path}: another file in the folder is already called {artefact.name!r}")
        found[artefact.name] = artefact
    return found


def same_model(given: str, served: str) -> bool:
    """Whether two model names mean one model: equal, or equal in the last component of their paths."""
    return given.rstrip("/").rsplit("/", 1)[-1] == served.rstrip("/").rsplit("/", 1)[-1]


def check_fits(what: str, model: str | None, widths: Mapping[int, int], shape: ModelShape) -> None:
    """ArtefactError unless the model, if given, is the served one and every layer has a site of the right width."""
    if model is not None and not same_model(model, shape.model):
        raise ArtefactError(f"{what} was made for model {model!r}, not for {shape.model!r}")
    for layer, width in sorted(widths.items()):
        if not 0 <= layer < shape.n_layers:
            raise ArtefactError(f"{what} is for layer {layer}, but the model's layers are 0 to {shape.n_layers - 1}")
        if layer not in shape.sites:
            raise ArtefactError(f"{what} is for layer {layer}, which has no site on this server")
        if width != shape.d_model:
            raise ArtefactError(f"{what} is {width} wide at layer {layer}, but the model is {shape.d_model} wide")


def layer_of(tensor: str, prefix: str) -> int | None:
    """The layer in a tensor's name such as ``layer.12``; None when it is not of this prefix."""
    match = re.fullmatch(re.escape(prefix) + r"\.(0|[1-9][0-9]{0,5})", tensor)
    return int(match[1]) if match else None


def _deserialize(data: bytes) -> tuple[list[tuple[str, Mapping[str, Any]]], dict[str, str]]:
    try:
        entries = safetensors.deserialize(data)
        # The library checks the header but does not hand out its metadata.
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError) as error:
        raise ArtefactError(f"not a safetensors file: {error}") from None
    return entries, metadata


def _row(name: str, entry: Mapping[str, Any]) -> Float32:
    if len(entry["shape"]) != 1 or entry["shape"][0] == 0:
        raise ArtefactError(f"tensor {name!r} must be one row of numbers, not of shape {entry['shape']}")
    match entry["dtype"]:
        case "F32":
            row = np.frombuffer(entry["data"], dtype="<f4")
        case "F16":
            row = np.frombuffer(entry["data"], dtype="<f2")
        case "BF16":
            # The upper half of a float32.
            row = (np.frombuffer(entry["data"], dtype="<u2").astype("<u4") << 16).view("<f4")
        case other:
            raise ArtefactError(f"tensor {name!r} must be float32, float16 or bfloat16, not {other}")
    row = row.astype(np.float32)
    if not np.isfinite(row).all():
        raise ArtefactError(f"tensor {name!r} holds NaN or infinite numbers")
    row.flags.writeable = False
    return row


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value
