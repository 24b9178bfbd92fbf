"""What a caller may write in Python for the two fields of a request, made what a client would send as JSON.

Tuples, numpy's numbers and, in the place of base64, tensors and arrays are taken; what the fields then hold is judged
by the same code that judges HTTP requests.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pilothouse.core.errors import BadRequest

STEERING, PROBES = "steering", "probes"


def steering_by_prompt(value: Any, n_prompts: int) -> list[Any] | None:
    """One value of `steering` a prompt, None where a prompt has none; None when one value is meant for all."""
    return _by_prompt(STEERING, value, n_prompts, lambda entry: entry is None or isinstance(entry, list | tuple))


def probes_by_prompt(value: Any, n_prompts: int) -> list[Any] | None:
    """`steering_by_prompt` for `probes`: a list of names is one value, and so is an object that is no SAE feature."""
    return _by_prompt(PROBES, value, n_prompts, _is_probes_field)


def plain_steering(value: Any) -> Any:
    """`steering` of one request as JSON would bring it; BadRequest for a tensor that is no direction."""
    value = _plain(value)
    if not isinstance(value, list):
        return value
    return [_with_inline(entry, f"{STEERING}[{i}].inline.layers") for i, entry in enumerate(value)]


def plain_probes(value: Any) -> Any:
    """`probes` of one request as JSON would bring it."""
    return _plain(value)


def _by_prompt(name: str, value: Any, n_prompts: int, is_own: Any) -> list[Any] | None:
    if not isinstance(value, list | tuple) or not any(map(is_own, value)):
        return None
    if not all(map(is_own, value)):
        raise BadRequest(f"{name} must be one value for all prompts or a list of one for each, not a mixture", name)
    if len(value) != n_prompts:
        raise BadRequest(f"{name} has {len(value)} values for {n_prompts} prompts", name)
    return list(value)


def _is_probes_field(entry: Any) -> bool:
    return entry is None or isinstance(entry, list | tuple) or (isinstance(entry, Mapping) and "sae" not in entry)


def _plain(value: Any) -> Any:
    """`value` with lists for tuples and Python's numbers for numpy's, as deep as lists and objects go."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_inline(entry: Any, where: str) -> Any:
    inline = entry.get("inline") if isinstance(entry, dict) else None
    layers = inline.get("layers") if isinstance(inline, dict) else None
    if not isinstance(inline, dict) or not isinstance(layers, dict):
        return entry
    rows = {_layer(key): _row(row, f"{where}.{key}") for key, row in layers.items()}
    if len(rows) < len(layers):
        raise BadRequest(f"{where} names a layer twice, as a number and as text", where)
    return {**entry, "inline": {**inline, "layers": rows}}


def _layer(key: Any) -> Any:
    return str(key) if isinstance(key, int | np.integer) and not isinstance(key, bool) else key


def _row(row: Any, where: str) -> Any:
    """base64 of little-endian float32 for a vector of numbers; anything else stays, for the fields' own checks."""
    if isinstance(row, torch.Tensor):
        # numpy has no bfloat16.
        row = row.detach().cpu().double().numpy() if row.is_floating_point() else row.detach().cpu().numpy()
    elif isinstance(row, list) and all(isinstance(number, int | float) for number in row):
        row = np.array(row, dtype=np.float64)
    if not isinstance(row, np.ndarray):
        return row
    if row.ndim != 1 or row.dtype.kind not in "fiu":
        raise BadRequest(f"{where} must be one row of real numbers, not {row.dtype} of shape {list(row.shape)}", where)
    with np.errstate(over="ignore"):
        return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")


def value_of(values: Sequence[Any] | None, shared: Any, number: int) -> Any:
    """What prompt `number` has: its own value where each has one, else the one for all."""
    return shared if values is None else values[number]
