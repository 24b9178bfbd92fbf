"""The folder of what was uploaded and deleted over HTTP, so that it outlives a restart and replicas can share it.

<root>/vectors/NAME.safetensors     uploads, one file each; so are probes/ and saes/
<root>/deleted/vectors/NAME.json    artefacts of configured folders that were deleted; the digest of the content
<root>/incoming/                    uploads that are still being read or checked
"""

import json
import os
import shutil
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilothouse.api.catalogue import KINDS, Kind
from pilothouse.core.artefact import check_name
from pilothouse.core.errors import StartupError
from pilothouse.core.places import signature

SUFFIX = ".safetensors"
MARK = ".json"
ABANDONED = 24 * 3600
"""Seconds after which nobody is still sending an upload."""


class Uploads:
    """Files by kind and name. Every change is one rename or removal, so readers meet a whole file or none."""

    def __init__(self, root: str | None = None) -> None:
        """root: the folder, made where it is missing; without one, uploads are forgotten when the process ends."""
        if root is None:
            self.root = Path(tempfile.mkdtemp(prefix="pilothouse-uploads-"))
            weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        else:
            self.root = Path(root)
        try:
            self.make()
            self._clear()
        except OSError as error:
            raise StartupError(f"{self.root} cannot keep uploads: {error.strerror}") from None
        if not os.access(self._incoming, os.W_OK):
            raise StartupError(f"{self.root} cannot keep uploads: it is not writable")

    def make(self) -> None:
        """See that all folders are there: cleaners of temporary files take empty ones away."""
        for kind in KINDS:
            self.folder(kind).mkdir(parents=True, exist_ok=True)
            self._deleted(kind).mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)

    def folder(self, kind: Kind) -> Path:
        """Where the uploads of one kind are."""
        return self.root / kind

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A path for an upload that has not been accepted; what is still there at the end of the block is removed."""
        self.make()
        path = self._incoming / f"{uuid.uuid4().hex}{SUFFIX}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, kind: Kind, name: str, staged: Path) -> Path:
        """Make a staged file the upload of that name, in the place of an earlier one; its path."""
        self.make()
        path = self.path(kind, name)
        staged.replace(path)
        return path

    def drop(self, kind: Kind, name: str) -> None:
        """Remove the upload of that name, if there is one."""
        self.path(kind, name).unlink(missing_ok=True)

    def delete(self, kind: Kind, name: str, digest: str) -> None:
        """Hide what configured folders have under that name, for as long as its content has this digest."""
        self.make()
        partial = self._incoming / uuid.uuid4().hex
        partial.write_text(json.dumps({"digest": digest}), encoding="utf-8")
        partial.replace(self._deleted(kind) / f"{check_name(name)}{MARK}")

    def undelete(self, kind: Kind, name: str) -> None:
        """Hide it no longer."""
        (self._deleted(kind) / f"{check_name(name)}{MARK}").unlink(missing_ok=True)

    def deleted(self, kind: Kind) -> dict[str, str]:
        """Digests of what is hidden, by name; StartupError for a mark that cannot be read."""
        found = {}
        for path in self._deleted(kind).glob(f"*{MARK}"):
            try:
                found[path.name.removesuffix(MARK)] = str(json.loads(path.read_text(encoding="utf-8"))["digest"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StartupError(f"{path} does not say what was deleted: {error}") from None
        return found

    def signature(self) -> str:
        """Changes with every change that was accepted, whichever server made it."""
        self.make()
        return " ".join(signature(str(path)) for path in (*map(self.folder, KINDS), self.root / "deleted"))

    def _clear(self) -> None:
        """Remove what servers left that were killed while they took an upload."""
        for path in self._incoming.iterdir():
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)

    def path(self, kind: Kind, name: str) -> Path:
        """Where the upload of that name is, if there is one."""
        # Names come from cards: the pattern has no separators, and a leading dot is not allowed.
        return self.folder(kind) / f"{check_name(name)}{SUFFIX}"

    def _deleted(self, kind: Kind) -> Path:
        return self.root / "deleted" / kind

    @property
    def _incoming(self) -> Path:
        return self.root / "incoming"
