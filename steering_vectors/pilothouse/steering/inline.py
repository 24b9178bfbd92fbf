"""Vectors that arrive inside a request: base64 of little-endian float32, one string a layer."""

import base64
import re
from collections.abc import Mapping

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.errors import BadRequest
from pilothouse.core.sites import Float32, ModelShape


def decode_inline(layers: Mapping[str, str], shape: ModelShape, param: str) -> Direction:
    """The direction that `layers` spells out for a model of `shape`.

    `param` is the path of the ``inline`` object in the request; BadRequest names the layer below it, for example
    ``steering[0].inline.layers.3``.
    """
    if not layers:
        raise BadRequest("an inline vector needs at least one layer", param=f"{param}.layers")
    return Direction(
        {_layer(key, shape, where): _row(text, shape, where) for key, text, where in _entries(layers, param)}
    )


def _entries(layers: Mapping[str, str], param: str) -> list[tuple[str, str, str]]:
    return [(key, text, f"{param}.layers.{key}") for key, text in layers.items()]


def _layer(key: str, shape: ModelShape, param: str) -> int:
    # By the letter, so that no two keys ("3" and "03") mean one layer.
    if not re.fullmatch(r"0|[1-9][0-9]{0,5}", key):
        raise BadRequest(f"a layer must be a whole number, not {key!r}", param=param)
    layer = int(key)
    if layer >= shape.n_layers:
        raise BadRequest(f"the model has layers 0 to {shape.n_layers - 1}, not {layer}", param=param)
    if layer not in shape.sites:
        raise BadRequest(f"layer {layer} has no site on this server", param=param)
    return layer


def _row(text: str, shape: ModelShape, param: str) -> Float32:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise BadRequest("a layer must be base64 of little-endian float32 numbers", param=param) from None
    if len(raw) != 4 * shape.d_model:
        raise BadRequest(
            f"a layer must be {shape.d_model} float32 numbers ({4 * shape.d_model} bytes), not {len(raw)} bytes",
            param=param,
        )
    row = np.frombuffer(raw, dtype="<f4")
    if not np.isfinite(row).all():
        raise BadRequest("a vector must not hold NaN or infinite numbers", param=param)
    return row
