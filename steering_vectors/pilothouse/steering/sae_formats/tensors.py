"""Named tensors of one file, whole or a slice at a time, always as float32: safetensors, npz and torch files.

None of the three runs code: npz is read without pickle, torch files with ``weights_only``. Files are mapped into memory
where their layout allows it, so that a slice reads a slice.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32

FLOATS = ("F64", "F32", "F16", "BF16")
_NAMES_SHOWN = 12
# Its functions have no types.
_NPY: Any = np.lib.format

Shapes = Mapping[str, tuple[int, ...]]
Dtypes = Mapping[str, str]


class TensorFile(Protocol):
    """A file of named tensors. `shapes` has every tensor; `dtypes` says of each what its numbers are."""

    path: Path
    shapes: Shapes
    dtypes: Dtypes

    def whole(self, name: str) -> Float32:
        """The tensor `name`, [its shape] float32."""
        ...

    def take(self, name: str, start: int, stop: int, axis: int) -> Float32:
        """The numbers of a matrix from `start` to before `stop` along `axis`, [stop - start, the other dimension]."""
        ...

    def is_float(self, name: str) -> bool:
        """Whether the tensor holds floating-point numbers that can be read."""
        ...


class SafetensorsFile:
    """A mapped safetensors file; ArtefactError when it is none, a truncated one among them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # numpy has no bfloat16, so torch does the reading.
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ArtefactError(f"{path.name} is not a whole safetensors file: {error}") from None
        except OSError as error:
            raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - not a mapping
        self.shapes: Shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        self.dtypes: Dtypes = {name: str(tensor.get_dtype()) for name, tensor in slices.items()}
        self.metadata: Mapping[str, str] = self._file.metadata() or {}

    def whole(self, name: str) -> Float32:
        """As `TensorFile.whole`."""
        tensor: Float32 = self._file.get_tensor(name).float().numpy()
        return tensor

    def take(self, name: str, start: int, stop: int, axis: int) -> Float32:
        """As `TensorFile.take`."""
        matrix, span = self._file.get_slice(name), slice(start, stop)
        stored = matrix[:, span].T if axis else matrix[span]
        rows: Float32 = stored.float().numpy()
        return rows

    def is_float(self, name: str) -> bool:
        """As `TensorFile.is_float`."""
        return self.dtypes[name] in FLOATS


class NpzFile:
    """A numpy archive; its members are mapped unless they are compressed. ArtefactError when it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    self._arrays[member.filename.removesuffix(".npy")] = _array(path, archive, member)
        except (zipfile.BadZipFile, ValueError, EOFError, struct.error) as error:
            raise ArtefactError(f"{path.name} is not a whole npz file: {error}") from None
        except OSError as error:
            raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None
        self.shapes: Shapes = {name: array.shape for name, array in self._arrays.items()}
        self.dtypes: Dtypes = {name: str(array.dtype) for name, array in self._arrays.items()}

    def whole(self, name: str) -> Float32:
        """As `TensorFile.whole`."""
        return _float32(self._arrays[name])

    def take(self, name: str, start: int, stop: int, axis: int) -> Float32:
        """As `TensorFile.take`."""
        array = self._arrays[name]
        return _float32(array[:, start:stop].T if axis else array[start:stop])

    def is_float(self, name: str) -> bool:
        """As `TensorFile.is_float`."""
        return self._arrays[name].dtype.kind == "f"


class TorchFile:
    """A dictionary of tensors saved by torch; ArtefactError when it is anything else, or needs code to be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _load_torch(path)
        if not isinstance(content, dict):
            raise ArtefactError(f"{path.name} holds {type(content).__name__}, not a dictionary of tensors")
        self._tensors = {str(name): value.detach() for name, value in content.items() if hasattr(value, "detach")}
        self.shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes: Dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}

    def whole(self, name: str) -> Float32:
        """As `TensorFile.whole`."""
        return _float32(self._tensors[name].float().numpy())

    def take(self, name: str, start: int, stop: int, axis: int) -> Float32:
        """As `TensorFile.take`."""
        stored = self._tensors[name].narrow(axis, start, stop - start).float().numpy()
        return _float32(stored.T if axis else stored)

    def is_float(self, name: str) -> bool:
        """As `TensorFile.is_float`."""
        return self.dtypes[name] in ("float64", "float32", "float16", "bfloat16")


def names(file: TensorFile) -> str:
    """The tensors of a file, for a message about what is missing."""
    found = sorted(file.shapes)
    more = len(found) - _NAMES_SHOWN
    return (", ".join(found[:_NAMES_SHOWN]) or "none") + (f" and {more} more" if more > 0 else "")


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with archive.open(member) as stream:
        shape, fortran, dtype = _array_header(stream)
        if dtype.hasobject:
            raise ArtefactError(f"{path.name}: {member.filename} is a pickle, which would run code when it is read")
        start = stream.tell()
        if member.compress_type == zipfile.ZIP_STORED and dtype.itemsize and np.prod(shape) and shape:
            order: Any = "F" if fortran else "C"
            offset = _data_offset(path, member) + start
            return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)
    with archive.open(member) as stream:
        array: npt.NDArray[Any] = _NPY.read_array(stream, allow_pickle=False)
    return array


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = _NPY.read_magic(stream)
    read = _NPY.read_array_header_1_0 if version == (1, 0) else _NPY.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    # The local header repeats the name and has an extra field of its own length.
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = struct.unpack("<HH", file.read(30)[26:30])
    return member.header_offset + 30 + int(name) + int(extra)


def _load_torch(path: Path) -> Any:
    import torch

    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global:? ?(?:GLOBAL)?)\s+([\w.]+)", str(error))
        if named:
            raise ArtefactError(
                f"{path.name} is a pickle that needs {named[1]}, so reading it would run code; save a plain "
                "dictionary of tensors instead"
            ) from None
        raise ArtefactError(f"{path.name} is not a whole torch file of tensors alone") from None
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        why = str(error).split("\n", 1)[0] or "it ends too soon"
        raise ArtefactError(f"{path.name} is not a whole torch file: {why}") from None


def _float32(array: npt.NDArray[Any]) -> Float32:
    with np.errstate(over="ignore"):
        return np.array(array, dtype=np.float32)
