"""What a server can steer with and read at one moment: vectors, probes and SAEs by name."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Self

from pilothouse.api.names import quote
from pilothouse.core.errors import NotFound
from pilothouse.probing import Probe
from pilothouse.steering import Sae, Vector

Kind = Literal["vectors", "probes", "saes"]
Entry = Vector | Probe | Sae

KINDS: tuple[Kind, ...] = ("vectors", "probes", "saes")
OBJECTS: dict[Kind, str] = {"vectors": "steering_vector", "probes": "probe", "saes": "sae"}
"""What an entry's `object` says, as OpenAI's lists have it."""
PATHS: dict[Kind, str] = {"vectors": "/v1/steering_vectors", "probes": "/v1/probes", "saes": "/v1/saes"}
"""Where each kind is listed and uploaded."""


@dataclass(frozen=True)
class Catalogue:
    """Everything that is registered at one moment; never changed, only replaced."""

    vectors: Mapping[str, Vector] = field(default_factory=lambda: MappingProxyType({}))
    probes: Mapping[str, Probe] = field(default_factory=lambda: MappingProxyType({}))
    saes: Mapping[str, Sae] = field(default_factory=lambda: MappingProxyType({}))
    default_probes: tuple[str, ...] = ()

    def entries(self, kind: Kind) -> Mapping[str, Any]:
        """The artefacts of one kind by name."""
        return {"vectors": self.vectors, "probes": self.probes, "saes": self.saes}[kind]

    def with_entries(self, kind: Kind, entries: Mapping[str, Any]) -> Self:
        """The same with other artefacts of one kind."""
        frozen = MappingProxyType(dict(entries))
        match kind:
            case "vectors":
                return replace(self, vectors=frozen)
            case "probes":
                return replace(self, probes=frozen)
            case "saes":
                return replace(self, saes=frozen)

    def card(self, kind: Kind, name: str) -> dict[str, Any]:
        """What is known of one artefact; NotFound when there is none of that name."""
        entry = self.entries(kind).get(name)
        if entry is None:
            raise NotFound(f"there is no {OBJECTS[kind].replace('_', ' ')} {quote(name)} on this server")
        return card_of(kind, name, entry)

    def cards(self, kind: Kind) -> list[dict[str, Any]]:
        """The cards of one kind, by name."""
        return [card_of(kind, name, entry) for name, entry in sorted(self.entries(kind).items())]

    def contents(self, kind: Kind) -> dict[str, str]:
        """What `content_of` says of each artefact of one kind, by name."""
        return {name: content_of(entry) for name, entry in self.entries(kind).items()}


def digest_of(entry: Entry) -> str:
    """The digest of an artefact's content, ``sha256:...``."""
    return entry.version if isinstance(entry, Probe) else entry.digest


def content_of(entry: Entry) -> str:
    """SHA-256 over all that an artefact says: numbers, card and, of an SAE, where it belongs."""
    place: list[Any] = []
    if isinstance(entry, Sae):
        largest = None if entry.max_acts is None else hashlib.sha256(entry.max_acts.tobytes()).hexdigest()
        place = [entry.layer, entry.model, entry.settings, largest]
    said = json.dumps([digest_of(entry), dict(entry.card), place], sort_keys=True, default=str)
    return hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()


def card_of(kind: Kind, name: str, entry: Entry) -> dict[str, Any]:
    """An artefact's card, in which id, object and digest are ours whatever its file says."""
    ours = {"id": name, "object": OBJECTS[kind], "digest": digest_of(entry)}
    return ours | dict(entry.card) | ours
