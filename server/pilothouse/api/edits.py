"""From one entry of `steering` to an edit: units multiplied in, layers checked, its gate made a level of a readout."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pilothouse.api.catalogue import Catalogue
from pilothouse.api.fields import EditField, GateField, Unit
from pilothouse.api.sources import Source, Sources, choose_layers, unknown
from pilothouse.api.strength import StrengthLimit
from pilothouse.core.edits import ALONG_VECTOR, OF_FEATURE, Edit, Gate
from pilothouse.core.errors import BadRequest
from pilothouse.probing import Probe

_FLOAT32_MAX = float(np.finfo(np.float32).max)
LARGEST_SHARE = 2.0
"""Of a component that is taken away: beyond twice, which mirrors it, every layer would make the stream longer."""


class EditMaker:
    """Makes edits from entries that have passed `fields.parse_steering`."""

    def __init__(self, sources: Sources, limit: StrengthLimit) -> None:
        self._sources = sources
        self._limit = limit

    def make(
        self, asked: Sequence[EditField], catalogue: Catalogue, where: str
    ) -> tuple[tuple[Edit, ...], tuple[float | None, ...]]:
        """The edits of a request, and how far each pushes the stream, in lengths of it; BadRequest, with the path below
        `where`, for the first thing wrong."""
        places = [f"{where}[{i}]" for i in range(len(asked))]
        sources = [self._sources.find(entry, catalogue, place) for entry, place in zip(asked, places, strict=True)]
        edits = [self._edit(*found, catalogue) for found in zip(asked, sources, places, strict=True)]
        norms = [source.resid_norm for source in sources]
        self._limit.check(edits, norms, where)
        return tuple(edits), self._limit.pushes(edits, norms)

    def _edit(self, asked: EditField, source: Source, where: str, catalogue: Catalogue) -> Edit:
        layers = choose_layers(asked.layers, source, where)
        if asked.op in ALONG_VECTOR:
            _require_length(source, layers, where)
        bounds = {layer: _bounds(asked, source, layer, where) for layer in layers} if asked.op == "cap" else {}
        return Edit(
            label=source.label,
            direction=source.direction,
            coefficients={layer: _coefficient(asked, source, layer, where) for layer in layers},
            positions=asked.span,
            op=asked.op,
            source=source.kind,
            feature=source.feature,
            bounds=bounds,
            reader=source.reader,
            preserve_norm=asked.preserve_norm,
            gate=None if asked.gate is None else _gate(asked.gate, layers, catalogue.probes, f"{where}.gate"),
        )


def _coefficient(asked: EditField, source: Source, layer: int, where: str) -> float:
    if asked.op in ("ablate", "cap"):
        if not 0.0 <= asked.strength <= LARGEST_SHARE:
            raise BadRequest(
                f"{where}.strength of {asked.op} is the share of the change that is made, from 0 to "
                f"{LARGEST_SHARE:g}, not {asked.strength:g}",
                f"{where}.strength",
            )
        return asked.strength
    value = asked.strength * _unit(asked, source, layer, where)
    if not math.isfinite(value) or abs(value) * max(1.0, source.direction.peaks[layer]) > _FLOAT32_MAX:
        raise BadRequest(f"{where}.strength is too large: the edit overflows float32", f"{where}.strength")
    return value


def _bounds(asked: EditField, source: Source, layer: int, where: str) -> tuple[float, float]:
    unit = _unit(asked, source, layer, where)
    low = -math.inf if asked.min is None else asked.min * unit
    high = math.inf if asked.max is None else asked.max * unit
    for name, value, given in (("min", low, asked.min), ("max", high, asked.max)):
        if given is not None and abs(value) > _FLOAT32_MAX:
            raise BadRequest(f"{where}.{name} is too large: the edit overflows float32", f"{where}.{name}")
    return low, high


def _unit(asked: EditField, source: Source, layer: int, where: str) -> float:
    """How much one of `strength`, `min` or `max` is. What is counted in activations of an SAE feature has, without a
    unit, that of its maximal activation, where known."""
    counts_activation = asked.op == "add" or asked.op in OF_FEATURE
    default: Unit = "max_act" if source.max_act is not None and counts_activation else "raw"
    match asked.unit or default:
        case "max_act":
            if source.max_act is None:
                raise BadRequest(f"no maximal activation is known for this {source.kind}", f"{where}.unit")
            return source.max_act
        case "resid_norm":
            if layer not in source.resid_norm:
                raise BadRequest(
                    f"no residual norm is known for this {source.kind} at layer {layer}: give unit raw", f"{where}.unit"
                )
            return source.resid_norm[layer]
    return 1.0


def _require_length(source: Source, layers: tuple[int, ...], where: str) -> None:
    for layer in layers:
        if not source.direction.lengths[layer] > 0.0:
            raise BadRequest(f"this {source.kind} is zero at layer {layer}: nothing has a component along it", where)


def _gate(asked: GateField, layers: tuple[int, ...], probes: Mapping[str, Probe], where: str) -> Gate:
    probe = probes.get(asked.probe)
    if probe is None:
        raise unknown("probe", asked.probe, probes, f"{where}.probe")
    above = asked.when == "above"
    stops = asked.action == "stop"
    if asked.scope == "token" and not stops and (last := max(probe.direction.layers)) > min(layers):
        raise BadRequest(
            f"probe {probe.name!r} is read up to layer {last}, behind the edit at layer {min(layers)}: a gate of scope "
            "token must be read at the same layer or before; scope rest may be read anywhere",
            f"{where}.probe",
        )
    return Gate(probe.name, probe.direction, above, probe.raw_level(asked.threshold, above), asked.scope, stops)
