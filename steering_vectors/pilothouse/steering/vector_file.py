"""Vectors on disk: tensors ``layer.{L}`` [d_model] and a card of kind `vector`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from pilothouse.core.artefact import (
    FormatVersion,
    Name,
    RawArtefact,
    layer_of,
    load_folder,
    parse_artefact,
    read_artefact,
    write_artefact,
)
from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.vector import Vector


class VectorCard(BaseModel):
    """The keys of a vector's card that mean something to the server; further ones are provenance and are kept."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    format: FormatVersion
    kind: Literal["vector"]
    name: Name
    model: str | None = None
    site: Literal["resid_post"] = "resid_post"
    method: str | None = None
    default_layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    resid_norm: dict[int, NonNegativeFloat] = {}
    recommended: tuple[float, float] | None = None


def vector_from_bytes(data: bytes) -> Vector:
    """The vector in the bytes of a safetensors file; ArtefactError says what is wrong with them."""
    raw = parse_artefact(data)
    card = raw.checked_card(VectorCard)
    rows = _rows(raw)
    if card.recommended and card.recommended[0] > card.recommended[1]:
        raise ArtefactError("the card is not valid: recommended must be [lowest, highest]")
    if card.default_layers:
        if missing := sorted(set(card.default_layers) - set(rows)):
            raise ArtefactError(f"default_layers names layer {missing[0]}, for which the file has no tensor")
        if len(set(card.default_layers)) < len(card.default_layers):
            raise ArtefactError("default_layers names a layer twice")
    return Vector(
        name=card.name,
        direction=Direction(rows),
        model=card.model,
        site=card.site,
        method=card.method,
        default_layers=card.default_layers or tuple(sorted(rows)),
        resid_norm=card.resid_norm,
        recommended=card.recommended,
        card=raw.card,
    )


def load_vector(path: Path) -> Vector:
    """The vector in one safetensors file; ArtefactError names the file and what is wrong with it."""
    data = read_artefact(path)
    try:
        return vector_from_bytes(data)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None


def load_vectors(folder: Path) -> dict[str, Vector]:
    """Every vector in `folder` (its ``*.safetensors``) by name; one bad or duplicate file is an ArtefactError."""
    return load_folder(folder, load_vector)


def save_vector(vector: Vector, path: Path) -> None:
    """Write `vector` with the card it carries, its own attributes taking precedence."""
    write_artefact(path, {f"layer.{layer}": row for layer, row in vector.direction.layers.items()}, vector.full_card)


def _rows(raw: RawArtefact) -> dict[int, Float32]:
    rows: dict[int, Float32] = {}
    for name, row in raw.tensors.items():
        layer = layer_of(name, "layer")
        if layer is None:
            raise ArtefactError(f"tensor {name!r} is unknown: a vector has tensors layer.0, layer.1, ...")
        rows[layer] = row
    if not rows:
        raise ArtefactError("the file has no tensor layer.{L}")
    if len({len(row) for row in rows.values()}) > 1:
        raise ArtefactError("the layers of a vector must all be of one width")
    return rows
