"""Control vectors of repeng, llama.cpp and EasySteer: GGUF with one tensor ``direction.{L}`` [d_model] a layer.

Read from repeng 0.4.0 (`ControlVector.export_gguf`, `ControlModule`) and llama.cpp (`common_control_vector_load`,
`llama_adapter_cvec`): both add ``direction.{L}`` to the output of the 0-based block L, so no offset is needed.
llama.cpp has no place for ``direction.0``; repeng writes one when asked to, and means block 0 by it. llama.cpp's own
generator reads the output of block L for ``direction.{L+1}``: --layer-offset -1 puts it back where it was read.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import as_row, check_row_shape, read_foreign, sha256_hex
from pilothouse.core.sites import Float32
from pilothouse.steering.vector_formats.found import Found, by_layer

MAGIC = b"GGUF"
ARCHITECTURE = "controlvector"


def read_control_vector(path: Path) -> Found:
    """The directions of a GGUF file; ArtefactError when it is not a sound control vector."""
    data = read_foreign(path)
    if not data.startswith(MAGIC):
        raise ArtefactError("not a GGUF file: it does not begin with GGUF")
    reader = _open(path)
    architecture = _value(reader, "general.architecture")
    if architecture != ARCHITECTURE:
        raise ArtefactError(f"its general.architecture is {architecture!r}: not a {ARCHITECTURE!r}")
    rows = by_layer([(_layer(tensor.name), tensor.name, _row(tensor)) for tensor in reader.tensors])
    count = _value(reader, f"{ARCHITECTURE}.layer_count")
    # More than there are directions is common: some write the model's number of layers.
    if isinstance(count, int) and count < len(rows):
        raise ArtefactError(f"it says to have {count} layers and has {len(rows)}")
    hint = _value(reader, f"{ARCHITECTURE}.model_hint")
    return Found(
        format="control vector (GGUF)",
        convention="direction.L is added to the output of the 0-based block L, as repeng and llama.cpp do",
        rows=rows,
        sha256=sha256_hex(data),
        facts={"model_hint": hint if isinstance(hint, str) else None, "layer_count": count},
    )


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    def get(reader: Any, offset: int, dtype: Any, count: int = 1, *order: Any, **orders: Any) -> Any:
        # The library's own reads nothing where the file has ended, and goes on: for ever, when a list claims a length
        # that the file has not.
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(reader.data):
            raise ValueError("it ends before what it says it holds")
        return GGUFReader._get(reader, offset, dtype, count, *order, **orders)

    try:
        with np.errstate(over="ignore"):
            return type("StrictReader", (GGUFReader,), {"_get": get})(path)
    except Exception as error:
        # What the library raises depends on the byte that is wrong.
        raise ArtefactError(f"not a sound GGUF file, perhaps cut short: {str(error) or type(error).__name__}") from None


def _value(reader: Any, key: str) -> Any:
    found = reader.get_field(key)
    try:
        value = None if found is None else found.contents()
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ArtefactError(f"its {key} cannot be read: {error}") from None
    return value if isinstance(value, str | int) else None


def _layer(tensor: str) -> int:
    match = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,5})", tensor)
    if not match:
        raise ArtefactError(f"tensor {tensor!r} is unknown: a control vector has direction.1, direction.2, ...")
    return int(match[1])


def _row(tensor: Any) -> Float32:
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import dequantize

    if tensor.tensor_type not in (Type.F32, Type.F16, Type.BF16, Type.F64):
        raise ArtefactError(f"tensor {tensor.name!r} must be of floating-point numbers, not {tensor.tensor_type.name}")
    # GGUF counts dimensions from the innermost; one that is given although it is 1 is a dimension all the same.
    check_row_shape(f"tensor {tensor.name!r}", [int(n) for n in reversed(tensor.shape)])
    bf16 = tensor.tensor_type == Type.BF16
    return as_row(f"tensor {tensor.name!r}", dequantize(tensor.data, Type.BF16) if bf16 else tensor.data)
