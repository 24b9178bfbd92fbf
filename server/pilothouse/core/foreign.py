"""Files that others publish: read without running anything that is in them, and every fault an ArtefactError."""

import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.core.artefact import read_artefact
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32

MAX_BYTES = 1 << 28
"""Far above what directions of the largest models need: what is larger is a model, not a vector or probe."""

MAX_WIDTH = 1 << 20

PICKLE_SUFFIXES = {".pkl", ".pickle", ".joblib", ".dill"}
TORCH_SUFFIXES = {".pt", ".pth", ".bin"}

_PICKLED = (
    "is a Python pickle, which can run any code when it is read, so it is never read here: where you trust the file, "
    "write its numbers as safetensors with the few lines that docs/formats.md shows under 'Pickles'"
)


def read_foreign(path: Path) -> bytes:
    """The bytes of a file; ArtefactError when it cannot be read, is empty or too large."""
    if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
        raise ArtefactError(f"the file has {size >> 20} MiB, too much for a vector or probe: is it a model?")
    data = read_artefact(path)
    if not data:
        raise ArtefactError("the file is empty")
    return data


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def refuse_pickle(path: Path, head: bytes) -> None:
    """ArtefactError when the file of this name and these first bytes is a pickle that torch did not write."""
    pickled = head[:1] == b"\x80" and 2 <= (head[1] if len(head) > 1 else 0) <= 5
    if path.suffix.lower() in PICKLE_SUFFIXES or (pickled and path.suffix.lower() not in TORCH_SUFFIXES):
        raise ArtefactError(f"the file {_PICKLED}")


def load_torch(data: bytes) -> Any:
    """What ``torch.save`` wrote, as tensors in plain containers; ArtefactError when it holds anything else."""
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            # It warns of pickles' newer protocols, and then reads or refuses them as any other.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ArtefactError(f"the file holds more than tensors: it {_PICKLED}") from None
    except Exception as error:
        # Which exception torch raises depends on the byte that is wrong.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtefactError(f"not a sound file of torch.save, perhaps cut short: {reason}") from None


def as_row(what: str, values: Any) -> Float32:
    """`values`, an array, a tensor or a list of numbers, as one read-only row [n] of float32.

    ArtefactError names `what` when it is of another shape, not of floating-point numbers, or not finite.
    """
    check_row_shape(what, _shape(values))
    row = _numpy(what, values)
    with np.errstate(over="ignore"):
        row = row.astype(np.float32)
    if not np.isfinite(row).all():
        raise ArtefactError(f"{what} holds NaN or infinite numbers")
    row.flags.writeable = False
    return row


def check_row_shape(what: str, shape: list[int]) -> None:
    """ArtefactError naming `what` unless `shape` is that of one row."""
    if len(shape) != 1 or not 0 < shape[0] <= MAX_WIDTH:
        hint = ": a matrix may be transposed or hold several layers, so nothing is guessed" if len(shape) > 1 else ""
        raise ArtefactError(f"{what} must be one row of numbers [d_model], not of shape {shape}{hint}")


def check_one_width(what: str, rows: Iterable[Float32]) -> None:
    """ArtefactError unless all rows are of one width; `what` names them."""
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise ArtefactError(f"{what} must all be of one width, not {' and '.join(map(str, widths))}")


def _shape(values: Any) -> list[int]:
    if isinstance(values, list):
        return [len(values), *([len(values[0])] if values and isinstance(values[0], list) else [])]
    return [int(n) for n in getattr(values, "shape", ())]


def _numpy(what: str, values: Any) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    if isinstance(values, list):
        # JSON's own numbers: true is not one of them, although Python counts it as 1.
        if any(type(value) not in (int, float) for value in values):
            raise ArtefactError(f"{what} must hold numbers only")
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            raise ArtefactError(f"{what} holds numbers that are too large") from None
    if hasattr(values, "detach"):
        import torch

        if not values.is_floating_point() or values.layout != torch.strided or values.device.type != "cpu":
            raise ArtefactError(f"{what} must be a plain floating-point tensor, not {values.dtype}, {values.layout}")
        return np.array(values.detach().double().numpy())
    if not np.issubdtype(values.dtype, np.floating):
        raise ArtefactError(f"{what} must hold floating-point numbers, not {values.dtype}")
    return np.array(values)
