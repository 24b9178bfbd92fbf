"""Probes on disk: tensors ``weight.{L}``, ``mean.{L}``, ``std.{L}`` [d_model], ``bias`` [1]; a card of kind `probe`."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pilothouse.core.artefact import (
    FormatVersion,
    Name,
    layer_of,
    load_folder,
    parse_artefact,
    read_artefact,
    write_artefact,
)
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.probing.aggregation import Aggregate, Alarm
from pilothouse.probing.calibration import Calibration
from pilothouse.probing.probe import Probe
from pilothouse.probing.words import Levels, check_levels


class ProbeCard(BaseModel):
    """The keys of a probe's card that mean something to the server; further ones are provenance and are kept."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    format: FormatVersion
    kind: Literal["probe"]
    name: Name
    label: Annotated[str, Field(min_length=1)]
    alarm: Alarm
    aggregate: Aggregate
    threshold: Annotated[float, Field(ge=0, le=1)]
    model: str | None = None
    site: Literal["resid_post"] = "resid_post"
    calibration: Calibration | None = None
    token_calibration: Calibration | None = None
    levels: Annotated[Levels, AfterValidator(check_levels)] | None = None


def probe_from_bytes(data: bytes) -> Probe:
    """The probe in the bytes of a safetensors file; ArtefactError says what is wrong with them."""
    raw = parse_artefact(data)
    card = raw.checked_card(ProbeCard)
    tensors = dict(raw.tensors)
    bias = tensors.pop("bias", np.zeros(1, dtype=np.float32))
    if len(bias) != 1:
        raise ArtefactError(f"tensor 'bias' must be one number, not {len(bias)}")
    rows = _by_kind(tensors)
    probe = Probe(
        name=card.name,
        label=card.label,
        alarm=card.alarm,
        aggregate=card.aggregate,
        threshold=card.threshold,
        weights=rows["weight"],
        bias=float(bias[0]),
        mean=rows["mean"],
        std=rows["std"],
        calibration=card.calibration,
        token_calibration=card.token_calibration,
        model=card.model,
        levels=card.levels,
        card=raw.card,
    )
    _check_folded(probe)
    return probe


def load_probe(path: Path) -> Probe:
    """The probe in one safetensors file; ArtefactError names the file and what is wrong with it."""
    data = read_artefact(path)
    try:
        return probe_from_bytes(data)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None


def load_probes(folder: Path) -> dict[str, Probe]:
    """Every probe in `folder` (its ``*.safetensors``) by name; one bad or duplicate file is an ArtefactError."""
    return load_folder(folder, load_probe)


def save_probe(probe: Probe, path: Path) -> None:
    """Write `probe`; what is loaded from there has the same version."""
    write_artefact(path, probe.tensors, probe.full_card)


def _by_kind(tensors: dict[str, Float32]) -> dict[str, dict[int, Float32]]:
    rows: dict[str, dict[int, Float32]] = {"weight": {}, "mean": {}, "std": {}}
    for name, row in tensors.items():
        kind = name.partition(".")[0]
        layer = layer_of(name, kind) if kind in rows else None
        if layer is None:
            raise ArtefactError(f"tensor {name!r} is unknown: a probe has weight.L, mean.L, std.L and bias")
        rows[kind][layer] = row
    if not rows["weight"]:
        raise ArtefactError("the file has no tensor weight.{L}")
    for kind in ("mean", "std"):
        if orphans := sorted(set(rows[kind]) - set(rows["weight"])):
            raise ArtefactError(f"there is {kind}.{orphans[0]} but no weight.{orphans[0]}")
    if len({len(row) for by_layer in rows.values() for row in by_layer.values()}) > 1:
        raise ArtefactError("the tensors of a probe must all be of one width")
    for layer, std in rows["std"].items():
        if not (std > 0).all():
            raise ArtefactError(f"tensor 'std.{layer}' must hold positive numbers only")
    return rows


def _check_folded(probe: Probe) -> None:
    # A tiny std can push weight / std beyond what float32 holds, although both are finite.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = all(np.isfinite(row).all() for row in probe.direction.layers.values()) and np.isfinite(probe.offset)
    if not finite:
        raise ArtefactError("weight / std is too large for float32")
