"""From a request's fields to a plan: names resolved, units multiplied in, layers checked against the model."""

import marshal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pilothouse.api.cache import ContentCache
from pilothouse.api.catalogue import Catalogue
from pilothouse.api.edits import EditMaker
from pilothouse.api.fields import EditField, FeatureField, ProbesField, parse_probes, parse_steering
from pilothouse.api.names import PROBES, STEERING, reject_near_misses
from pilothouse.api.registry import Registry
from pilothouse.api.sources import Sources
from pilothouse.api.strength import StrengthLimit
from pilothouse.core.combinations import require_possible
from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.edits import Edit
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import Plan, Readout
from pilothouse.probing import Probe

BEAM_SEARCH = "use_beam_search"

_LONGEST_KEY = 4096
_MOST_ASKS = 1000


@dataclass(frozen=True)
class Ask:
    """What a request asks for: the plan for the engine, and how its answer is to be shown.

    probes stand in the order of the plan's readouts, of which gates may have more. tokens, prompt: scores of generated
    and of prompt tokens are shown. steering_given: the client sent `steering`, so it gets receipts even when the list
    was empty. reads_given: it sent `probes` or a gate, so it is owed what the engine fails to read. pushes: of each
    edit, in lengths of the stream, where known.
    """

    plan: Plan = field(default_factory=Plan)
    probes: tuple[Probe, ...] = ()
    tokens: bool = False
    prompt: bool = False
    steering_given: bool = False
    reads_given: bool = False
    pushes: tuple[float | None, ...] = ()


class Planner:
    """Makes plans against the registry as it is at the time of the request."""

    def __init__(self, registry: Registry, layout: EngineLayout, limits: Limits) -> None:
        self._registry = registry
        self._layout = layout
        self._limits = limits
        self._sources = Sources(registry.shape, limits.adhoc_cache_bytes)
        self.strength_limit = StrengthLimit(limits.max_strength)
        self._edit_maker = EditMaker(self._sources, self.strength_limit)
        self._asks = _Asks(registry.catalogue, limits.adhoc_cache_bytes)

    def plan(self, fields: Mapping[str, Any], catalogue: Catalogue | None = None) -> Ask:
        """The plan of a request with these extra top-level fields; BadRequest names the first thing wrong.

        catalogue: the present one, unless another is to be tried.
        """
        reject_near_misses(fields)
        if catalogue is not None:
            return self._made(fields, catalogue)
        catalogue = self._registry.catalogue
        asks = self._asks
        if asks.catalogue is not catalogue:
            asks = self._asks = _Asks(catalogue, self._limits.adhoc_cache_bytes)
        key = _key_of(fields)
        return self._made(fields, catalogue) if key is None else asks.get(key, lambda: self._made(fields, catalogue))

    def _made(self, fields: Mapping[str, Any], catalogue: Catalogue) -> Ask:
        steering_given = STEERING in fields
        edits: tuple[Edit, ...] = ()
        pushes: tuple[float | None, ...] = ()
        if steering_given:
            edits, pushes = self._edits(parse_steering(fields[STEERING], self._layout), catalogue)
        asked = parse_probes(fields[PROBES]) if PROBES in fields else ProbesField()
        if fields.get(BEAM_SEARCH) is True:
            return _without_beams(edits, asked.names != [] and PROBES in fields)
        names_at = PROBES if isinstance(fields.get(PROBES), list) else f"{PROBES}.names"
        ask = self._ask(edits, asked, catalogue, names_at)
        reads = PROBES in fields or any(edit.gate is not None for edit in edits)
        return replace(ask, steering_given=steering_given, reads_given=reads, pushes=pushes)

    def defaults(self, catalogue: Catalogue | None = None) -> Ask:
        """The plan of a request that cannot carry our fields: the server's default probes."""
        return self._ask((), ProbesField(), catalogue or self._registry.catalogue)

    def _ask(self, edits: tuple[Edit, ...], asked: ProbesField, catalogue: Catalogue, names_at: str = PROBES) -> Ask:
        names = catalogue.default_probes if asked.names is None else asked.names
        probes = self._probes(names, catalogue, names_at)
        readouts = tuple(Readout(p.name, p.direction) for p in probes) + _gate_readouts(edits, probes)
        if len({readout.direction.digest for readout in readouts}) > self._layout.readouts:
            raise BadRequest(f"this server reads at most {self._layout.readouts} probes at once", names_at)
        shows_prompt = asked.prompt and bool(probes)
        plan = Plan(edits, readouts, prompt_scores=shows_prompt or any(map(_looks_at_prompt, edits)))
        return Ask(plan, probes, asked.tokens, shows_prompt)

    def _probes(self, entries: Iterable[str | FeatureField], catalogue: Catalogue, where: str) -> tuple[Probe, ...]:
        found: dict[str, Probe] = {}
        for i, entry in enumerate(entries):
            at = f"{where}[{i}]"
            probe = self._sources.probe(entry, catalogue, at)
            if probe.name in found:
                raise BadRequest(f"probe {probe.name!r} is named twice", at)
            found[probe.name] = probe
        return tuple(found.values())

    def _edits(
        self, fields: list[EditField], catalogue: Catalogue
    ) -> tuple[tuple[Edit, ...], tuple[float | None, ...]]:
        if len(fields) > self._limits.max_edits:
            raise BadRequest(f"{STEERING} may have {self._limits.max_edits} edits, not {len(fields)}", STEERING)
        self._check_inline_size(fields)
        made = self._edit_maker.make(fields, catalogue, STEERING)
        require_possible(made[0], self._registry.shape)
        return made

    def _check_inline_size(self, fields: list[EditField]) -> None:
        total = 0
        for i, edit in enumerate(fields):
            if edit.inline is not None:
                total += sum(len(text) for text in edit.inline.layers.values()) * 3 // 4
            if total > self._limits.max_inline_bytes:
                raise BadRequest(
                    f"inline vectors may have {self._limits.max_inline_bytes} bytes in all", f"{STEERING}[{i}].inline"
                )


class _Asks(ContentCache[Ask]):
    """Asks that were made against `catalogue`: most requests of a server ask for what others have asked for."""

    def __init__(self, catalogue: Catalogue, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda ask: max_bytes // _MOST_ASKS + sum(d.n_bytes for d in ask.plan.directions))
        self.catalogue = catalogue


def _key_of(fields: Mapping[str, Any]) -> bytes | None:
    """What requests have in common that ask for the same; None for what is too large to be kept, and what is no JSON.

    In Python's own form of values, where, unlike in JSON, a list is no tuple and 1 is neither 1.0 nor true.
    """
    ours = {name: fields[name] for name in (STEERING, PROBES, BEAM_SEARCH) if name in fields}
    steering = ours.get(STEERING)
    if isinstance(steering, list) and any(isinstance(entry, dict) and "inline" in entry for entry in steering):
        return None
    try:
        # Later versions of the form say which strings are one object, by which no two requests are alike.
        key = marshal.dumps(ours, 2)
    except ValueError:
        return None
    return key if len(key) <= _LONGEST_KEY else None


def _without_beams(edits: tuple[Edit, ...], probed: bool) -> Ask:
    """Beam search rebuilds its requests and loses what they carry: it is refused to those who asked for something."""
    if edits or probed:
        raise BadRequest("beam search can be neither steered nor probed", STEERING if edits else PROBES)
    return Ask()


def _looks_at_prompt(edit: Edit) -> bool:
    """Whether the receipt cannot be made without the gate's readouts of the prompt."""
    gate = edit.gate
    return gate is not None and (gate.latched or edit.positions not in ("generation", "last_prompt"))


def _gate_readouts(edits: tuple[Edit, ...], probes: tuple[Probe, ...]) -> tuple[Readout, ...]:
    """Readouts that only gates look at, behind those of the probes."""
    shown = {probe.direction.digest for probe in probes}
    gates = {edit.gate.readout.digest: edit.gate for edit in edits if edit.gate is not None}
    return tuple(Readout(gate.label, gate.readout) for digest, gate in gates.items() if digest not in shown)
