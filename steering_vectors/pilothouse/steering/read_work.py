"""The work folder of an extraction: what was read so far, a file a batch, so that an interrupted run goes on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load, save

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.unfinished import require_same_key, write_key

Arrays = Mapping[str, npt.NDArray[Any]]

NAMES = {"rows", "norms", "counts"}


class ReadWork:
    """``key.json`` (what is read) and ``00000000.safetensors``, ...: batches called by the number of their first item.

    A run may go on with another method or seed, not with other pairs, layers, tokens, or another model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, Any], resume: bool) -> Self:
        """The work in `folder`, begun anew unless `resume` and it holds some; ArtefactError when it has another key."""
        work, card = cls(folder), folder / "key.json"
        if folder.exists() and not card.is_file():
            raise ArtefactError(f"{folder} is not the work folder of an extraction")
        if resume and work._file(0).exists():
            require_same_key(card, key)
            return work
        work.remove()
        folder.mkdir(parents=True)
        write_key(card, key)
        return work

    def batches(self) -> Iterator[Arrays]:
        """What was kept, in the order of items, up to the first gap."""
        done = 0
        while (path := self._file(done)).exists():
            try:
                arrays = load(path.read_bytes())
            except (OSError, safetensors.SafetensorError) as error:
                raise ArtefactError(f"{path} cannot be read ({error}): --no-resume starts over") from None
            if set(arrays) != NAMES or not len(arrays["rows"]):
                raise ArtefactError(f"{path} is not from an extraction: --no-resume starts over")
            yield arrays
            done += len(arrays["rows"])

    def keep(self, first: int, arrays: Arrays) -> None:
        """Keep a batch that begins with item `first`. Written aside and moved: never half of a file under its name."""
        path = self._file(first)
        partial = path.with_suffix(".partial")
        partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        partial.replace(path)

    def remove(self) -> None:
        """Delete the folder with what this class put there: the run is complete."""
        if self.folder.exists():
            for pattern in ("*.safetensors", "*.partial", "key.json"):
                for path in self.folder.glob(pattern):
                    path.unlink()
            self.folder.rmdir()

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:08d}.safetensors"
