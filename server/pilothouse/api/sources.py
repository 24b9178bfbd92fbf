"""Where one edit's direction comes from: a vector or an SAE feature of the registry, or the request itself."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pilothouse.api.cache import ContentCache
from pilothouse.api.catalogue import Catalogue
from pilothouse.api.features import readable_feature, require_readable, watched_feature
from pilothouse.api.fields import EditField, FeatureField, InlineField
from pilothouse.api.names import encodable, quote
from pilothouse.core.directions import Direction
from pilothouse.core.edits import OF_FEATURE, Reader
from pilothouse.core.errors import ArtefactError, BadRequest
from pilothouse.core.sites import ModelShape
from pilothouse.probing import Probe
from pilothouse.steering import Sae, decode_inline

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Source:
    """A direction, and what is known of its scale. reader: of a feature, where the operation asks for it."""

    kind: Literal["vector", "sae", "inline"]
    label: str
    direction: Direction
    default_layers: tuple[int, ...]
    resid_norm: Mapping[int, float] = field(default_factory=dict)
    max_act: float | None = None
    feature: int | None = None
    reader: Reader | None = None


class Sources:
    """Finds sources; decodes and hashes what requests bring along once."""

    def __init__(self, shape: ModelShape, cache_bytes: int) -> None:
        self._shape = shape
        self._adhoc: ContentCache[Direction] = ContentCache(cache_bytes, lambda direction: direction.n_bytes)
        self._watched: ContentCache[Probe] = ContentCache(cache_bytes, lambda probe: probe.direction.n_bytes)

    def find(self, asked: EditField, catalogue: Catalogue, where: str) -> Source:
        """The source that one entry of `steering` names; BadRequest when there is none."""
        if asked.vector is not None:
            vector = catalogue.vectors.get(asked.vector)
            if vector is None:
                raise unknown("steering vector", asked.vector, catalogue.vectors, f"{where}.vector")
            return Source("vector", vector.name, vector.direction, tuple(vector.default_layers), vector.resid_norm)
        if asked.inline is not None:
            direction = self._inline(asked.inline, f"{where}.inline")
            return Source("inline", "inline", direction, tuple(sorted(direction.layers)))
        assert asked.sae is not None
        assert asked.feature is not None
        sae = catalogue.saes.get(asked.sae)
        if sae is None:
            raise unknown("SAE", asked.sae, catalogue.saes, f"{where}.sae")
        return self._feature(sae, asked.feature, asked.op in OF_FEATURE, where)

    def probe(self, entry: str | FeatureField, catalogue: Catalogue, where: str) -> Probe:
        """The probe, or the SAE feature watched as one, that an entry of `probes` names; BadRequest for neither."""
        if isinstance(entry, str):
            probe = catalogue.probes.get(entry)
            if probe is None:
                raise unknown("probe", entry, catalogue.probes, where)
            return probe
        sae = catalogue.saes.get(entry.sae)
        if sae is None:
            raise unknown("SAE", entry.sae, catalogue.saes, f"{where}.sae")
        _require_feature(sae, entry.feature, where)
        name = f"{sae.name}/{entry.feature}"
        try:
            # Not by digest, which does not cover all that a feature's numbers come from: layer, biases, statistics.
            key = f"{sae.serial}|{entry.feature}".encode()
            return self._watched.get(key, lambda: watched_feature(name, sae, entry.feature, adhoc=True))
        except ArtefactError as error:
            raise BadRequest(str(error), f"{where}.feature") from None

    def _feature(self, sae: Sae, feature: int, reads: bool, where: str) -> Source:
        _require_feature(sae, feature, where)
        key = f"sae|{sae.serial}|{feature}"
        try:
            direction = self._adhoc.get(
                f"{key}|decoder".encode(), lambda: Direction({sae.layer: sae.decoder_row(feature)})
            )
            max_act = sae.max_act(feature)
            reader = self.reader(sae, feature, f"{where}.op") if reads else None
        except ArtefactError as error:
            raise BadRequest(f"feature {feature} cannot be used: {error}", f"{where}.feature") from None
        return Source("sae", sae.name, direction, (sae.layer,), max_act=max_act, feature=feature, reader=reader)

    def reader(self, sae: Sae, feature: int, where: str) -> Reader:
        """What the feature's activation is read by; BadRequest when one feature's cannot be read by itself."""
        try:
            require_readable(sae)
        except ArtefactError as error:
            raise BadRequest(str(error), where) from None
        found, encoder = readable_feature(sae, feature)
        key = f"sae|{sae.serial}|{feature}|encoder".encode()
        direction = self._adhoc.get(key, lambda: Direction({sae.layer: encoder}))
        return Reader(direction, found.bias, found.threshold)

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


def _require_feature(sae: Sae, feature: int, where: str) -> None:
    if not 0 <= feature < sae.d_sae:
        raise BadRequest(f"SAE {sae.name!r} has features 0 to {sae.d_sae - 1}", f"{where}.feature")


def choose_layers(asked: Literal["all"] | list[int] | None, source: Source, where: str) -> tuple[int, ...]:
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


def unknown(kind: str, name: str, known: Mapping[str, object], param: str) -> BadRequest:
    """The error for a name that the registry does not have."""
    listed = sorted(known)
    more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
    has = ", ".join(listed[:_NAMES_SHOWN]) + more if listed else "none"
    return BadRequest(f"there is no {kind} {quote(name)} here; this server has: {has}", param)
