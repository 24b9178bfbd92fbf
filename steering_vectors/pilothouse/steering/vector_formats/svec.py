"""IBM activation-steering's ``.svec``: JSON ``{"model_type", "directions": {"L": [numbers]}, "explained_variances"}``.

Read from the published code (`steering_vector.py`, `leash_layer.py`): direction L is made from the Hugging Face
``hidden_states[L + 1]``, the output of the 0-based block L, but that library adds it to the **input** of block L, which
is the output of block L - 1. Here it goes where it was read; --layer-offset -1 steers as that library does.
"""

import json
import re
from pathlib import Path
from typing import Any

from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import as_row, read_foreign, sha256_hex
from pilothouse.steering.vector_formats.found import Found, by_layer


def read_svec(path: Path) -> Found:
    """The directions of a ``.svec`` file; ArtefactError when it is not a sound one."""
    data = read_foreign(path)
    content = _parse(data)
    directions = content.get("directions") if isinstance(content, dict) else None
    if not isinstance(directions, dict):
        raise ArtefactError('not a .svec file: it has no "directions" by layer')
    numbered = [(_layer(key), key, as_row(f"direction {key!r}", _numbers(key, row))) for key, row in directions.items()]
    given = content.get("model_type")
    model_type = given if isinstance(given, str) else None
    return Found(
        format="IBM activation-steering (.svec)",
        convention="layer L is the 0-based block whose output was read; the library itself adds it to that block's "
        "input, which is layer_offset -1",
        rows=by_layer(numbered),
        sha256=sha256_hex(data),
        facts={"model_hint": model_type, "model_type": model_type},
    )


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"not a sound JSON file, perhaps cut short: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ArtefactError(f"the key {twice!r} comes twice in one object")
    return found


def _layer(key: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,5}", key):
        raise ArtefactError(f"{key!r} is no layer: directions are keyed by the numbers of layers")
    return int(key)


def _numbers(key: str, row: Any) -> list[Any]:
    if not isinstance(row, list):
        raise ArtefactError(f"direction {key!r} must be a list of numbers")
    return row
