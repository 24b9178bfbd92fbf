"""The present catalogue of a server, changed only by whole new ones: by uploads, by deletions, or read again."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pilothouse.api.catalogue import KINDS, Catalogue, Entry, Kind, card_of, content_of, digest_of
from pilothouse.api.errors import BusyError, ConflictError
from pilothouse.api.features import watched_feature
from pilothouse.api.loading import check_entry, load_catalogue, places
from pilothouse.api.names import quote
from pilothouse.api.peers import Message, Peers
from pilothouse.api.presets import Monitor, load_monitors
from pilothouse.api.uploads import Uploads
from pilothouse.core.artefact import read_artefact
from pilothouse.core.config import ServerConfig
from pilothouse.core.errors import ArtefactError, BadRequest, PilothouseError, StartupError
from pilothouse.core.places import is_on_hub, is_url, local_path, signature
from pilothouse.core.sites import ModelShape
from pilothouse.core.url_errors import masked
from pilothouse.probing import Probe, probe_from_bytes
from pilothouse.steering import sae_from_upload, vector_from_bytes

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a change waits for another, which may be fetching from far away."""

Check = Callable[[Catalogue], None]
"""Raises StartupError or BadRequest for a catalogue that the server's own configuration cannot do with."""

Watcher = Callable[[Catalogue], None]
"""Is told of the present catalogue and of every later one."""


class Registry:
    """Hands out the present catalogue without a lock; changes take turns, and happen whole or not at all."""

    def __init__(self, config: ServerConfig, shape: ModelShape, peers: Peers | None = None) -> None:
        """What is configured, held against the served model; ArtefactError or StartupError names what is bad.

        peers: further API servers of this server, whose registries change with this one.
        """
        self._peers = peers
        self.shape = shape
        self.reload_error: str | None = None
        self._config = config
        self.uploads = Uploads(config.uploads)
        self._monitors = load_monitors(config.monitors)
        self._checks: list[Check] = [_check_default_probes]
        self._watchers: list[Watcher] = []
        self._changing = threading.Lock()
        self._seen = self.uploads.signature()
        self._loaded = load_catalogue(config, shape, self.uploads)
        self._artefacts = self._loaded.catalogue
        self.catalogue = self._tried(self._artefacts)

    def require(self, check: Check) -> None:
        """Hold the present catalogue and every later one to `check`; its error when the present one fails."""
        check(self.catalogue)
        self._checks.append(check)

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of the present catalogue, and of every later one as soon as it is there."""
        watcher(self.catalogue)
        self._watchers.append(watcher)

    def recheck(self) -> None:
        """Hold the present catalogue to all that is required of it, some of which may only be known by now."""
        for check in self._checks:
            check(self.catalogue)

    def read_upload(self, kind: Kind, path: Path) -> Entry:
        """A safetensors file that a client sent, checked in full; ArtefactError when it cannot be used here."""
        match kind:
            case "vectors":
                entry: Entry = vector_from_bytes(read_artefact(path))
            case "probes":
                entry = probe_from_bytes(read_artefact(path))
            case "saes":
                entry = sae_from_upload(path)
        check_entry("the upload", entry, self.shape)
        # Taken while the file is where it was read from.
        digest_of(entry)
        return entry

    def check_free(self, kind: Kind, entry: Entry, replaces: bool) -> None:
        """ConflictError when the entry's name means something else here and must not be taken from it."""
        if kind == "probes" and entry.name in self._monitors:
            raise ConflictError(f"{quote(entry.name)} is a monitor of this server, watching a feature")
        old = self._artefacts.entries(kind).get(entry.name)
        if old is not None and not replaces and content_of(old) != content_of(entry):
            raise ConflictError(
                f"{quote(entry.name)} is registered with other content: delete it first, or add ?replace=true"
            )

    def add(self, kind: Kind, entry: Entry, staged: Path, replaces: bool = False) -> dict[str, Any]:
        """Register what `read_upload` read from the file `staged`, which is kept; returns its card.

        The same content again changes nothing. A request that was made before a name got other content ends as it
        began: plans hold content, not names.
        """
        with self._turn():
            self._catch_up()
            self.check_free(kind, entry, replaces)
            present = self._artefacts.entries(kind)
            old = present.get(entry.name)
            if old is not None and content_of(old) == content_of(entry):
                entry = old
            with self._change(self._artefacts.with_entries(kind, {**present, entry.name: entry})):
                # Kept even where a configured folder has the same: that folder may lose it.
                self.uploads.keep(kind, entry.name, staged)
                self.uploads.undelete(kind, entry.name)
            self._tell({"do": "add", "kind": kind, "name": entry.name})
        return card_of(kind, entry.name, entry)

    def remove(self, kind: Kind, name: str) -> dict[str, Any]:
        """Forget an artefact, whether it was uploaded or lies in a configured folder; returns its card.

        Requests that already hold it end as they began. ConflictError where the server's configuration needs it.
        """
        with self._turn():
            self._catch_up()
            change = {"do": "remove", "kind": kind, "name": name}
            if name not in self.catalogue.entries(kind):
                # Another server may have missed that it went, and its client now asks again.
                self._tell(change)
            card = self.catalogue.card(kind, name)
            if kind == "probes" and name in self._monitors:
                raise ConflictError(f"{quote(name)} is a monitor of this server and cannot be deleted")
            present = self._artefacts.entries(kind)
            left = {other: entry for other, entry in present.items() if other != name}
            with self._change(self._artefacts.with_entries(kind, left)):
                if (configured := self._loaded.configured[kind].get(name)) is not None:
                    self.uploads.delete(kind, name, configured)
                self.uploads.drop(kind, name)
            self._tell(change)
        return card

    def reload(self) -> dict[str, dict[str, list[str]]]:
        """Read all places again; by kind the names that were added, replaced and removed.

        ConflictError, and nothing changed, when what is there now could not be started with.
        """
        with self._turn():
            before = self._artefacts
            self._reload()
            self._tell({"do": "reload"})
            return {kind: _difference(before.contents(kind), self._artefacts.contents(kind)) for kind in KINDS}

    def follow(self, change: Message) -> None:
        """Make a change that another API server of this server has made; PilothouseError when that cannot be."""
        # That one has the turn.
        with self._alone():
            if change["do"] == "reload":
                self._reload()
                return
            kind, name = change["kind"], change["name"]
            entries = {other: entry for other, entry in self._artefacts.entries(kind).items() if other != name}
            if change["do"] == "add":
                entries[name] = self.read_upload(kind, self.uploads.path(kind, name))
            with self._change(self._artefacts.with_entries(kind, entries)):
                pass

    def signature(self) -> tuple[str, ...]:
        """Changes whenever `reload` may find something new. ArtefactError when a place cannot be looked at."""
        configured = [place for kind in KINDS for place in places(self._config, kind)]
        return (*(signature(_whole(place)) for place in configured), self.uploads.signature())

    def _reload(self) -> None:
        seen = self.uploads.signature()
        try:
            loaded = load_catalogue(self._config, self.shape, self.uploads)
            catalogue = self._tried(loaded.catalogue)
        except (PilothouseError, OSError) as error:
            self.reload_error = masked(str(error))
            raise ConflictError(f"nothing was reloaded, the registry is as it was: {self.reload_error}") from None
        self._artefacts, self._loaded, self._seen = loaded.catalogue, loaded, seen
        self._publish(catalogue)
        self.reload_error = None

    def _catch_up(self) -> None:
        """Read all again, with the other API servers, when another server has changed the uploads; ConflictError when
        that cannot be."""
        if self.uploads.signature() != self._seen:
            self._reload()
            self._tell({"do": "reload"})

    def _tell(self, change: Message) -> None:
        if self._peers is not None:
            self._peers.tell(change, otherwise="this one has made the change, send it again")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # First the turn among all, then here: whoever has the former waits for others to get the latter.
        with nullcontext() if self._peers is None else self._peers.turn(PATIENCE), self._alone():
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._changing.acquire(timeout=PATIENCE):
            raise BusyError("the registry is being read again: nothing was changed, try once more")
        try:
            yield
        finally:
            self._changing.release()

    @contextmanager
    def _change(self, artefacts: Catalogue) -> Iterator[None]:
        """Publish these artefacts once the block has put them on disk; ConflictError, before it, when the server's own
        configuration cannot do with them: what is on disk must be fit to start with."""
        try:
            catalogue = self._tried(artefacts)
        except (StartupError, BadRequest) as error:
            raise ConflictError(f"this server's configuration does not allow that: {error}") from None
        try:
            yield
        except OSError as error:
            raise BusyError(f"the uploads folder does not take the change: {error.strerror or error}") from None
        self._artefacts, self._seen = artefacts, self.uploads.signature()
        self._publish(catalogue)

    def _publish(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        for watcher in self._watchers:
            try:
                watcher(catalogue)
            except Exception:
                logger.exception("%s could not take in a change of the registry", watcher)

    def _tried(self, artefacts: Catalogue) -> Catalogue:
        """The catalogue of these artefacts, monitors included, that has passed all checks."""
        catalogue = artefacts.with_entries("probes", _with_monitors(artefacts, self._monitors))
        for check in self._checks:
            check(catalogue)
        return catalogue


def _whole(place: str) -> str:
    """What to look at for changes of `place`: beside a file on this machine lie others that are read with it."""
    if is_on_hub(place) or is_url(place):
        return place
    path = local_path(place)
    return str(path.parent if path.is_file() else path)


def _check_default_probes(catalogue: Catalogue) -> None:
    for name in catalogue.default_probes:
        if name not in catalogue.probes:
            has = ", ".join(sorted(catalogue.probes)) or "none"
            raise StartupError(f"default probe {name!r} is not among the probes that were loaded: {has}")


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


def _difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        "added": sorted(after.keys() - before.keys()),
        "replaced": sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
        "removed": sorted(before.keys() - after.keys()),
    }
