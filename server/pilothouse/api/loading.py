"""Artefacts from the files and folders that the configuration names, all of them checked against the served model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pilothouse.api.catalogue import KINDS, Catalogue, Entry, Kind, content_of
from pilothouse.api.uploads import Uploads
from pilothouse.core.config import ServerConfig
from pilothouse.core.errors import ArtefactError, StartupError
from pilothouse.core.foreign import PICKLE_SUFFIXES
from pilothouse.core.places import local_path
from pilothouse.core.sites import ModelShape
from pilothouse.core.url_errors import masked
from pilothouse.probing import load_probe, load_probes
from pilothouse.steering import load_saes, load_vector, load_vectors

_TITLES: dict[Kind, str] = {"vectors": "steering vector", "probes": "probe", "saes": "SAE"}

_FOREIGN = {".gguf", ".svec", ".pt", ".pth", ".bin", *PICKLE_SUFFIXES}


def places(config: ServerConfig, kind: Kind) -> tuple[str, ...]:
    """Where the configuration says that artefacts of one kind lie."""
    return {"vectors": config.vectors, "probes": config.probes, "saes": config.saes}[kind]


@dataclass(frozen=True)
class Loaded:
    """What there is; configured: by kind and name what the configured places have (`content_of`), deleted or not."""

    catalogue: Catalogue
    configured: Mapping[Kind, Mapping[str, str]]


def load_catalogue(config: ServerConfig, shape: ModelShape, uploads: Uploads) -> Loaded:
    """The artefacts of the configured places and, before them, those that were uploaded; without those deleted.

    ArtefactError or StartupError names the file and what is wrong with it.
    """
    catalogue = Catalogue(default_probes=config.default_probes)
    configured: dict[Kind, dict[str, str]] = {}
    for kind in KINDS:
        deleted = uploads.deleted(kind)
        found = _load_all(kind, places(config, kind), shape)
        configured[kind] = {name: content_of(entry) for name, entry in found.items()}
        kept = {name: entry for name, entry in found.items() if deleted.get(name) != configured[kind][name]}
        uploaded = _load_all(kind, (str(uploads.folder(kind)),), shape)
        catalogue = catalogue.with_entries(kind, {**kept, **uploaded})
    return Loaded(catalogue, configured)


def check_entry(where: str, entry: Entry, shape: ModelShape) -> None:
    """ArtefactError, beginning with `where`, unless an artefact fits the served model."""
    try:
        entry.check_fits(shape)
    except ArtefactError as error:
        raise ArtefactError(f"{where}: {error}") from None


def _load_all(kind: Kind, paths: tuple[str, ...], shape: ModelShape) -> Mapping[str, Any]:
    found: dict[str, Entry] = {}
    for path in paths:
        place, shown = local_path(path), masked(path)
        if not place.exists():
            raise StartupError(f"{shown}: there is no such file or folder to load {_TITLES[kind]}s from")
        entries = _read(kind, place)
        if not entries and kind != "saes" and (foreign := _foreign(place)):
            raise StartupError(
                f"{shown}: there is no {_TITLES[kind]} in our own format here, but there is {foreign}: "
                "`pilothouse vectors convert` and `pilothouse probes convert` make one of it"
            )
        for name, entry in entries.items():
            check_entry(shown, entry, shape)
            # Digests of large files are taken here, once, rather than under the first request that needs one.
            content = content_of(entry)
            if name in found and content_of(found[name]) != content:
                raise StartupError(f"{shown}: {_TITLES[kind]} {name!r} was loaded before with other content")
            found[name] = entry
    return MappingProxyType(found)


def _read(kind: Kind, path: Path) -> Mapping[str, Any]:
    match kind:
        case "vectors":
            return load_vectors(path) if path.is_dir() else _by_name(load_vector(path))
        case "probes":
            return load_probes(path) if path.is_dir() else _by_name(load_probe(path))
        case "saes":
            return load_saes(path)


def _by_name(entry: Any) -> Mapping[str, Any]:
    return {entry.name: entry}


def _foreign(folder: Path) -> str | None:
    """A file in `folder` that another library wrote, which would else be passed over in silence."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _FOREIGN) if folder.is_dir() else []
    return found[0] if found else None
