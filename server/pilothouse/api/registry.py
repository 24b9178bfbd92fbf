"""What this server can steer with and read: vectors, probes and SAEs by name, changed only by whole new catalogues."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self, TypeVar

from pilothouse.api.errors import ConflictError
from pilothouse.api.features import watched_feature
from pilothouse.api.names import quote
from pilothouse.api.presets import Monitor, load_monitors
from pilothouse.core.config import ServerConfig
from pilothouse.core.errors import ArtefactError, BadRequest, NotFound, StartupError
from pilothouse.core.foreign import PICKLE_SUFFIXES
from pilothouse.core.places import local_path
from pilothouse.core.sites import ModelShape
from pilothouse.probing import Probe, load_probe, load_probes, probe_from_bytes
from pilothouse.steering import Sae, Vector, load_saes, load_vector, load_vectors, vector_from_bytes

Kind = Literal["vectors", "probes", "saes"]

_OBJECTS: dict[Kind, str] = {"vectors": "steering_vector", "probes": "probe", "saes": "sae"}

_FOREIGN = {".gguf", ".svec", ".pt", ".pth", ".bin", *PICKLE_SUFFIXES}


class _Artefact(Protocol):
    @property
    def name(self) -> str: ...

    def check_fits(self, shape: ModelShape) -> None: ...


T = TypeVar("T", bound=_Artefact)


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


class Registry:
    """Hands out the present catalogue without a lock; changes take turns."""

    def __init__(self, shape: ModelShape, catalogue: Catalogue | None = None) -> None:
        self.shape = shape
        self.catalogue = catalogue or Catalogue()
        self._changing = threading.Lock()

    @classmethod
    def load(cls, config: ServerConfig, shape: ModelShape) -> Self:
        """The artefacts of the configured files and folders, all of them checked against the served model.

        ArtefactError or StartupError names the file and what is wrong with it.
        """
        catalogue = Catalogue(
            vectors=_load_all("steering vector", config.vectors, shape, _read_vectors, lambda v: v.digest),
            probes=_load_all("probe", config.probes, shape, _read_probes, lambda p: p.version),
            saes=_load_all("SAE", config.saes, shape, load_saes, lambda s: s.digest),
            default_probes=config.default_probes,
        )
        catalogue = replace(catalogue, probes=_with_monitors(catalogue, load_monitors(config.monitors)))
        for name in config.default_probes:
            if name not in catalogue.probes:
                has = ", ".join(sorted(catalogue.probes)) or "none"
                raise StartupError(f"default probe {name!r} is not among the probes that were loaded: {has}")
        return cls(shape, catalogue)

    def card(self, kind: Kind, name: str) -> dict[str, Any]:
        """What is known of one artefact; NotFound when there is none of that name."""
        entry = self.catalogue.entries(kind).get(name)
        if entry is None:
            raise NotFound(f"there is no {_OBJECTS[kind].replace('_', ' ')} {quote(name)} on this server")
        return _card(kind, name, entry)

    def cards(self, kind: Kind) -> list[dict[str, Any]]:
        """The cards of one kind, by name."""
        return [_card(kind, name, entry) for name, entry in sorted(self.catalogue.entries(kind).items())]

    def add(self, kind: Kind, data: bytes) -> dict[str, Any]:
        """Register an uploaded safetensors file; returns its card. Uploading the same content again changes nothing."""
        if kind == "saes":
            raise BadRequest("an SAE is a folder of files: load it at start with --saes; it cannot be uploaded")
        entry: Vector | Probe = vector_from_bytes(data) if kind == "vectors" else probe_from_bytes(data)
        _check("the upload", entry, self.shape)
        with self._changing:
            present = self.catalogue.entries(kind)
            old = present.get(entry.name)
            if old is not None and _digest(old) != _digest(entry):
                raise ConflictError(f"{quote(entry.name)} is registered with other content: delete it first")
            if old is None:
                self._replace(kind, {**present, entry.name: entry})
        return _card(kind, entry.name, entry)

    def remove(self, kind: Kind, name: str) -> None:
        """Forget an artefact; requests that already hold it end as they began."""
        with self._changing:
            self.card(kind, name)
            if kind == "probes" and name in self.catalogue.default_probes:
                raise ConflictError(f"{quote(name)} is a default probe of this server and cannot be deleted")
            self._replace(kind, {n: e for n, e in self.catalogue.entries(kind).items() if n != name})

    def _replace(self, kind: Kind, entries: Mapping[str, Any]) -> None:
        frozen = MappingProxyType(dict(entries))
        match kind:
            case "vectors":
                self.catalogue = replace(self.catalogue, vectors=frozen)
            case "probes":
                self.catalogue = replace(self.catalogue, probes=frozen)
            case "saes":
                self.catalogue = replace(self.catalogue, saes=frozen)


def _with_monitors(catalogue: Catalogue, monitors: Mapping[str, Monitor]) -> Mapping[str, Probe]:
    """The catalogue's probes and, under their names, the SAE features that are watched like them."""
    found = dict(catalogue.probes)
    for name, monitor in monitors.items():
        sae = catalogue.saes.get(monitor.sae)
        if sae is None:
            raise StartupError(f"monitor {name!r}: there is no SAE {monitor.sae!r} among those that were loaded")
        if name in found:
            raise StartupError(f"monitor {name!r} has the name of a probe")
        try:
            found[name] = watched_feature(name, sae, monitor.feature, flag_above=monitor.flag_above)
        except (ArtefactError, BadRequest) as error:
            raise StartupError(f"monitor {name!r}: {error}") from None
    return MappingProxyType(found)


def _digest(entry: Vector | Probe | Sae) -> str:
    return entry.version if isinstance(entry, Probe) else entry.digest


def _card(kind: Kind, name: str, entry: Vector | Probe | Sae) -> dict[str, Any]:
    ours = {"id": name, "object": _OBJECTS[kind], "digest": _digest(entry)}
    return ours | dict(entry.card) | ours


def _check(where: str, entry: _Artefact, shape: ModelShape) -> None:
    try:
        entry.check_fits(shape)
    except ArtefactError as error:
        raise ArtefactError(f"{where}: {error}") from None


def _load_all(
    kind: str,
    paths: tuple[str, ...],
    shape: ModelShape,
    read: Callable[[Path], Mapping[str, T]],
    digest: Callable[[T], str],
) -> Mapping[str, T]:
    found: dict[str, T] = {}
    for path in paths:
        place = local_path(path)
        if not place.exists():
            raise StartupError(f"{path}: there is no such file or folder to load {kind}s from")
        entries = read(place)
        if not entries and kind != "SAE" and (foreign := _foreign(place)):
            raise StartupError(
                f"{path}: there is no {kind} in our own format here, but there is {foreign}: "
                "`pilothouse vectors convert` and `pilothouse probes convert` make one of it"
            )
        for name, entry in entries.items():
            _check(path, entry, shape)
            # Digests of large files are taken here, once, rather than under the first request that needs one.
            content = digest(entry)
            if name in found and digest(found[name]) != content:
                raise StartupError(f"{path}: {kind} {name!r} was loaded before with other content")
            found[name] = entry
    return MappingProxyType(found)


def _foreign(folder: Path) -> str | None:
    """A file in `folder` that another library wrote, which would else be passed over in silence."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _FOREIGN) if folder.is_dir() else []
    return found[0] if found else None


def _read_vectors(path: Path) -> Mapping[str, Vector]:
    if path.is_dir():
        return load_vectors(path)
    vector = load_vector(path)
    return {vector.name: vector}


def _read_probes(path: Path) -> Mapping[str, Probe]:
    if path.is_dir():
        return load_probes(path)
    probe = load_probe(path)
    return {probe.name: probe}
