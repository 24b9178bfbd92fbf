"""Safetensors without a card of ours, or a torch dictionary: a tensor [d_model] a layer, under a name with its number.

Accepted are ``layer.3``, ``layer_3``, ``layers.3``, ``direction.3``, ``blocks.3.hook_resid_post``, ``model.layers.3``,
``3`` and the like, all of one form in a file. No such file says how it counts: L is taken as the 0-based block whose
output was read, and --layer-offset -1 is for those that count from 1, or by ``hidden_states``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilothouse.core.artefact import parse_tensors
from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import as_row, load_torch, read_foreign, sha256_hex
from pilothouse.steering.vector_formats.found import Found, by_layer

CONVENTION = "the number is taken as the 0-based block whose output was read: the file does not say how it counts"

_NAME = re.compile(
    r"(?P<before>(?:(?:model\.)?layers?|blocks?|directions?|resid_post)[._-]?|)(?P<layer>[0-9]{1,6})"
    r"(?P<after>\.hook_resid_post)?"
)


def read_safetensors(path: Path) -> Found:
    """The rows of a safetensors file without a card; ArtefactError names the tensor that is wrong."""
    data = read_foreign(path)
    tensors, metadata = parse_tensors(data)
    hint = next((metadata[key] for key in ("model", "model_name", "model_id") if key in metadata), None)
    return _found("safetensors, a tensor a layer", tensors, sha256_hex(data), {"model_hint": hint})


def read_torch(path: Path) -> Found:
    """The rows of a dictionary {layer: tensor} that torch wrote; ArtefactError names the entry that is wrong."""
    data = read_foreign(path)
    content = load_torch(data)
    if not isinstance(content, Mapping):
        raise ArtefactError(f"the file must hold tensors by layer, not a {type(content).__name__}")
    if any(type(key) not in (int, str) for key in content):
        raise ArtefactError("the dictionary in the file must be keyed by layers")
    rows = {str(key): _tensor(key, value) for key, value in content.items()}
    if len(rows) < len(content):
        raise ArtefactError("a layer comes twice in the dictionary, as a number and as text")
    return _found("torch dictionary, a tensor a layer", rows, sha256_hex(data), {})


def _found(what: str, tensors: Mapping[str, Any], digest: str, facts: Mapping[str, Any]) -> Found:
    matches = {name: _match(name) for name in tensors}
    forms = sorted({(match["before"] + "{L}" + (match["after"] or "")) for match in matches.values()})
    if len(forms) > 1:
        raise ArtefactError(f"its tensors are named in more than one way, {' and '.join(forms)}: which are the layers?")
    rows = by_layer(
        [(int(match["layer"]), name, as_row(f"tensor {name!r}", tensors[name])) for name, match in matches.items()]
    )
    named_as = {"named_as": forms[0]} if forms else {}
    return Found(format=what, convention=CONVENTION, rows=rows, sha256=digest, facts={**facts, **named_as})


def _match(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name)
    if match:
        return match
    if "resid_pre" in name:
        raise ArtefactError(
            f"tensor {name!r} is for the stream before a block: call it layer.{{L-1}}, the block before it"
        )
    raise ArtefactError(f"tensor {name!r} names no layer: call it layer.13, for the output of the 0-based block 13")


def _tensor(key: Any, value: Any) -> Any:
    if not hasattr(value, "is_floating_point"):
        raise ArtefactError(f"entry {key!r} must be a tensor, not a {type(value).__name__}")
    return value
