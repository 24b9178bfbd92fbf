"""What every importer finds in a file, and the vector that is made of it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pilothouse.core.artefact import NAME_PATTERN, check_name, parse_json
from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import check_one_width
from pilothouse.core.sites import SITE, Float32
from pilothouse.steering.vector import Vector


@dataclass(frozen=True)
class ImportOptions:
    """What whoever converts a file says of it.

    name: what requests will call it, else made from the file's name; model: what it was made for; layer_offset: added
    to each layer of the file; layers: which layers to keep, counted after the offset, all when None.
    """

    name: str | None = None
    model: str | None = None
    layer_offset: int = 0
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Found:
    """A file of another library as read: rows [d_model] float32 by the layer that the file gives them.

    format: what wrote it; convention: what its layer L means, in words, when no offset is given; sha256: of the file's
    bytes, or of each file's by name; facts: whatever else it says of itself, JSON values only.
    """

    format: str
    convention: str
    rows: Mapping[int, Float32]
    sha256: str | Mapping[str, str]
    method: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def by_layer(numbered: list[tuple[int, str, Float32]]) -> dict[int, Float32]:
    """Rows by layer from (layer, what the file calls it, row); ArtefactError when a layer comes twice."""
    names: dict[int, str] = {}
    rows: dict[int, Float32] = {}
    for layer, name, row in numbered:
        if layer in rows:
            raise ArtefactError(f"layer {layer} comes twice, as {names[layer]!r} and {name!r}")
        names[layer], rows[layer] = name, row
    return rows


def as_vector(found: Found, path: Path, options: ImportOptions) -> Vector:
    """The vector, with its origin under the card's key `source`; ArtefactError when rows or options do not fit."""
    rows = {layer + options.layer_offset: row for layer, row in sorted(found.rows.items())}
    if not rows:
        raise ArtefactError("there is no direction in it, for any layer")
    check_one_width("the directions", rows.values())
    if min(rows) < 0:
        raise ArtefactError(f"with --layer-offset {options.layer_offset}, layer {min(found.rows)} would be {min(rows)}")
    kept = keep_layers(tuple(rows), options.layers)
    source: dict[str, Any] = {
        "format": found.format,
        "file": path.name,
        "sha256": found.sha256 if isinstance(found.sha256, str) else dict(found.sha256),
        "convention": found.convention,
        "layer_offset": options.layer_offset,
        **found.facts,
    }
    # What a file says of itself may hold text that no card can be written with.
    source = parse_json(json.dumps(source))
    vector = Vector(
        name=check_name(options.name) if options.name else name_from(path),
        direction=Direction({layer: rows[layer] for layer in kept}),
        model=options.model,
        site=SITE,
        method=found.method,
        default_layers=kept,
        resid_norm={},
        recommended=None,
        card={"source": source},
    )
    return replace(vector, card=vector.full_card)


def keep_layers(present: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """`wanted` in ascending order, or all; ArtefactError when one is not there or comes twice."""
    if wanted is None:
        return present
    if not wanted or len(set(wanted)) < len(wanted):
        raise ArtefactError("--layers must name at least one layer, and none of them twice")
    if missing := sorted(set(wanted) - set(present)):
        raise ArtefactError(f"there is no layer {missing[0]}, only {', '.join(map(str, present))}")
    return tuple(sorted(wanted))


def name_from(path: Path) -> str:
    """A name made from a file's or folder's; ArtefactError when nothing of it can stay."""
    stem = path.stem if path.is_file() else path.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:128]
    if not re.fullmatch(NAME_PATTERN, name):
        raise ArtefactError(f"no name can be made from {path.name!r}: give one with --name")
    return name
