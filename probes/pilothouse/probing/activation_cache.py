"""What was read from a model, kept in a folder, so that a run that was stopped goes on where it was."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load, save

from pilothouse.core.errors import ArtefactError

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ActivationCache:
    """A safetensors file for each batch that was read, called by the digest of the model and of what was read.

    model: what tells this model's activations from another's; a name alone does not when its weights change.
    """

    folder: Path
    model: str

    def arrays(self, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """What `make` returned for `key` (JSON) in this run or an earlier one. ArtefactError when it cannot be kept."""
        text = json.dumps({"model": self.model, **key}, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
        try:
            if path.exists():
                return dict(load(path.read_bytes()))
            made = make()
            self._keep(path, made)
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtefactError(f"the cache file {path} cannot be used: {error}") from None
        return made

    def remove(self) -> None:
        """Delete the folder with all that it holds: the run that it was for is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, path: Path, arrays: Arrays) -> None:
        """Written aside and moved: a run that is stopped here leaves no half of a file under the final name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        partial.replace(path)
