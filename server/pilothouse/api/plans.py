"""From a request's fields to a plan: names resolved, units multiplied in, layers checked against the model."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pilothouse.api.cache import DirectionCache
from pilothouse.api.fields import EditField, InlineField, ProbesField, Unit, parse_probes, parse_steering
from pilothouse.api.names import PROBES, STEERING, encodable, quote, reject_near_misses
from pilothouse.api.registry import Catalogue, Registry
from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit
from pilothouse.core.errors import ArtefactError, BadRequest
from pilothouse.core.plans import Plan, Readout
from pilothouse.probing import Probe
from pilothouse.steering import decode_inline

BEAM_SEARCH = "use_beam_search"
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Ask:
    """What a request asks for: the plan for the engine, and how its answer is to be shown.

    probes stand in the order of the plan's readouts. steering_given: the client sent `steering`, so it gets receipts
    even when the list was empty. probes_given: it sent `probes`, so it is owed what the engine fails to read.
    """

    plan: Plan = field(default_factory=Plan)
    probes: tuple[Probe, ...] = ()
    tokens: bool = False
    steering_given: bool = False
    probes_given: bool = False


@dataclass(frozen=True)
class _Source:
    """Where one edit's direction comes from, and what is known of its scale."""

    kind: Literal["vector", "sae", "inline"]
    label: str
    direction: Direction
    default_layers: tuple[int, ...]
    resid_norm: Mapping[int, float] = field(default_factory=dict)
    max_act: float | None = None
    feature: int | None = None


class Planner:
    """Makes plans against the registry as it is at the time of the request."""

    def __init__(self, registry: Registry, layout: EngineLayout, limits: Limits) -> None:
        self._registry = registry
        self._shape = registry.shape
        self._layout = layout
        self._limits = limits
        self._adhoc = DirectionCache(limits.adhoc_cache_bytes)

    def plan(self, fields: Mapping[str, Any]) -> Ask:
        """The plan of a request with these extra top-level fields; BadRequest names the first thing wrong."""
        reject_near_misses(fields)
        catalogue = self._registry.catalogue
        steering_given = STEERING in fields
        edits = self._edits(parse_steering(fields[STEERING]), catalogue) if steering_given else ()
        asked = parse_probes(fields[PROBES]) if PROBES in fields else ProbesField()
        if fields.get(BEAM_SEARCH) is True:
            return _without_beams(edits, asked.names != [] and PROBES in fields)
        names_at = PROBES if isinstance(fields.get(PROBES), list) else f"{PROBES}.names"
        ask = self._ask(edits, asked, catalogue, names_at)
        return replace(ask, steering_given=steering_given, probes_given=PROBES in fields)

    def defaults(self) -> Ask:
        """The plan of a request that cannot carry our fields: the server's default probes."""
        return self._ask((), ProbesField(), self._registry.catalogue)

    def _ask(self, edits: tuple[Edit, ...], asked: ProbesField, catalogue: Catalogue, names_at: str = PROBES) -> Ask:
        names = catalogue.default_probes if asked.names is None else asked.names
        probes = _find_probes(names, catalogue, names_at)
        if len({p.direction.digest for p in probes}) > self._layout.readouts:
            raise BadRequest(f"this server reads at most {self._layout.readouts} probes at once", names_at)
        readouts = tuple(Readout(p.name, p.direction) for p in probes)
        plan = Plan(edits, readouts, prompt_scores=asked.prompt and bool(probes))
        return Ask(plan, probes, asked.tokens)

    def _edits(self, fields: list[EditField], catalogue: Catalogue) -> tuple[Edit, ...]:
        if len(fields) > self._limits.max_edits:
            raise BadRequest(f"{STEERING} may have {self._limits.max_edits} edits, not {len(fields)}", STEERING)
        self._check_inline_size(fields)
        return tuple(self._edit(edit, catalogue, f"{STEERING}[{i}]") for i, edit in enumerate(fields))

    def _check_inline_size(self, fields: list[EditField]) -> None:
        total = 0
        for i, edit in enumerate(fields):
            if edit.inline is not None:
                total += sum(len(text) for text in edit.inline.layers.values()) * 3 // 4
            if total > self._limits.max_inline_bytes:
                raise BadRequest(
                    f"inline vectors may have {self._limits.max_inline_bytes} bytes in all", f"{STEERING}[{i}].inline"
                )

    def _edit(self, asked: EditField, catalogue: Catalogue, where: str) -> Edit:
        source = self._source(asked, catalogue, where)
        layers = _choose_layers(asked.layers, source, where)
        return Edit(
            label=source.label,
            direction=source.direction,
            coefficients={layer: self._coefficient(asked, source, layer, where) for layer in layers},
            positions=asked.span,
            op=asked.op,
            source=source.kind,
            feature=source.feature,
        )

    def _source(self, asked: EditField, catalogue: Catalogue, where: str) -> _Source:
        if asked.vector is not None:
            vector = catalogue.vectors.get(asked.vector)
            if vector is None:
                raise _unknown("steering vector", asked.vector, catalogue.vectors, f"{where}.vector")
            return _Source("vector", vector.name, vector.direction, tuple(vector.default_layers), vector.resid_norm)
        if asked.inline is not None:
            direction = self._inline(asked.inline, f"{where}.inline")
            return _Source("inline", "inline", direction, tuple(sorted(direction.layers)))
        return self._feature(asked, catalogue, where)

    def _feature(self, asked: EditField, catalogue: Catalogue, where: str) -> _Source:
        assert asked.sae is not None
        assert asked.feature is not None
        sae = catalogue.saes.get(asked.sae)
        if sae is None:
            raise _unknown("SAE", asked.sae, catalogue.saes, f"{where}.sae")
        feature = asked.feature
        if not 0 <= feature < sae.d_sae:
            raise BadRequest(f"SAE {sae.name!r} has features 0 to {sae.d_sae - 1}", f"{where}.feature")
        key = f"sae|{sae.digest}|{feature}".encode()
        try:
            direction = self._adhoc.get(key, lambda: Direction({sae.layer: sae.decoder_row(feature)}))
            max_act = sae.max_act(feature)
        except ArtefactError as error:
            raise BadRequest(f"feature {feature} cannot be used: {error}", f"{where}.feature") from None
        return _Source("sae", sae.name, direction, (sae.layer,), max_act=max_act, feature=feature)

    def _inline(self, inline: InlineField, where: str) -> Direction:
        sha = hashlib.sha256(b"inline")
        for layer, text in sorted(inline.layers.items()):
            for part in (layer, text):
                raw = part.encode("utf-8", "surrogatepass")
                sha.update(len(raw).to_bytes(8, "little"))
                sha.update(raw)
        try:
            return self._adhoc.get(sha.digest(), lambda: decode_inline(inline.layers, self._shape, where))
        except BadRequest as error:
            # The path holds a key of the client's own choosing.
            raise BadRequest(encodable(str(error)), encodable(error.param or where)) from None

    def _coefficient(self, asked: EditField, source: _Source, layer: int, where: str) -> float:
        value = asked.strength * _unit(asked.unit, source, layer, where)
        if not math.isfinite(value) or abs(value) * max(1.0, source.direction.peaks[layer]) > _FLOAT32_MAX:
            raise BadRequest(f"{where}.strength is too large: the edit overflows float32", f"{where}.strength")
        return value


def _without_beams(edits: tuple[Edit, ...], probed: bool) -> Ask:
    """Beam search rebuilds its requests and loses what they carry: it is refused to those who asked for something."""
    if edits or probed:
        raise BadRequest("beam search can be neither steered nor probed", STEERING if edits else PROBES)
    return Ask()


def _unit(asked: Unit | None, source: _Source, layer: int, where: str) -> float:
    """How much one of `strength` is. An SAE feature without a unit counts in its maximal activation, where known."""
    unit = asked or ("max_act" if source.max_act is not None else "raw")
    if unit == "max_act":
        if source.max_act is None:
            raise BadRequest(f"no maximal activation is known for this {source.kind}", f"{where}.unit")
        return source.max_act
    if unit == "resid_norm":
        if layer not in source.resid_norm:
            raise BadRequest(
                f"no residual norm is known for this {source.kind} at layer {layer}: give unit raw", f"{where}.unit"
            )
        return source.resid_norm[layer]
    return 1.0


def _choose_layers(asked: Literal["all"] | list[int] | None, source: _Source, where: str) -> tuple[int, ...]:
    """The layers of an edit, all of them its source's; that those are sites was seen to when the source arrived."""
    if asked is None:
        return source.default_layers
    has = sorted(source.direction.layers)
    if asked == "all":
        return tuple(has)
    for j, layer in enumerate(asked):
        if layer not in has:
            known = ", ".join(map(str, has))
            raise BadRequest(f"this {source.kind} has no layer {quote(layer)}; it has {known}", f"{where}.layers[{j}]")
        if layer in asked[:j]:
            raise BadRequest(f"{where}.layers names layer {layer} twice", f"{where}.layers[{j}]")
    return tuple(sorted(asked))


def _find_probes(names: Iterable[str], catalogue: Catalogue, where: str) -> tuple[Probe, ...]:
    found: dict[str, Probe] = {}
    for i, name in enumerate(names):
        probe = catalogue.probes.get(name)
        if probe is None:
            raise _unknown("probe", name, catalogue.probes, f"{where}[{i}]")
        if name in found:
            raise BadRequest(f"probe {name!r} is named twice", f"{where}[{i}]")
        found[name] = probe
    return tuple(found.values())


def _unknown(kind: str, name: str, known: Mapping[str, object], param: str) -> BadRequest:
    listed = sorted(known)
    more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
    has = ", ".join(listed[:_NAMES_SHOWN]) + more if listed else "none"
    return BadRequest(f"there is no {kind} {quote(name)} here; this server has: {has}", param)
