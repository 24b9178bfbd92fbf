"""A pass of an SAE over kept rows, whose running state is kept too, so that an interrupted pass goes on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load, save

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_settings import sae_lens

Arrays = dict[str, npt.NDArray[Any]]

KEPT_SECONDS = 20.0
POSITION = "chunks_done"


def run_pass(
    state: Arrays,
    chunks: Sequence[Any],
    update: Callable[[Arrays, Any], None],
    kept: Path | None = None,
    progress: Progress | None = None,
    seconds: float = KEPT_SECONDS,
) -> Arrays:
    """`update` changes the arrays of `state` chunk by chunk; the last state, which is also kept in the file `kept`
    every so many seconds and at the end, and gone on from there. ArtefactError for a file of another pass."""
    state = {**state, POSITION: np.zeros(1, dtype=np.int64)}
    if kept is not None and kept.exists():
        state = _held(kept, state)
    last = time.monotonic()
    for number in range(int(state[POSITION][0]), len(chunks)):
        update(state, chunks[number])
        state[POSITION][0] = number + 1
        if kept is not None and (number + 1 == len(chunks) or time.monotonic() - last >= seconds):
            partial = kept.with_suffix(".partial")
            partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in state.items()}))
            partial.replace(kept)
            last = time.monotonic()
        if progress:
            progress(number + 1, len(chunks))
    return state


def load_encoder(folder: Path) -> Any:
    """The SAE of a SAELens folder as SAELens itself loads it, for `encode` and `decode`."""
    library = sae_lens()
    try:
        return library.SAE.load_from_disk(folder)
    except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtefactError(f"{folder}: SAELens cannot load it: {error}") from None


def encode(sae: Any, rows: npt.NDArray[Any]) -> tuple[Float32, Float32]:
    """Activations [n, d_sae] and reconstruction [n, d_in] of rows [n, d_in]."""
    import torch

    with torch.inference_mode():
        # A copy: torch takes no array that cannot be written to, such as a mapped one.
        acts = sae.encode(torch.from_numpy(np.array(rows, dtype=np.float32)))
        rebuilt = sae.decode(acts)
    return acts.float().numpy(), rebuilt.float().numpy()


def _held(path: Path, wanted: Arrays) -> Arrays:
    try:
        held: Arrays = {name: array.copy() for name, array in load(path.read_bytes()).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}): --no-resume starts over") from None
    if {name: (array.shape, array.dtype) for name, array in held.items()} != {
        name: (array.shape, array.dtype) for name, array in wanted.items()
    }:
        raise ArtefactError(f"{path} is from another pass: --no-resume starts over")
    return held
