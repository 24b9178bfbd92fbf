"""Writing of SAEs in the native form, whatever format they were read from."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from pilothouse.core.artefact import CARD_KEY, RawArtefact, check_name, parse_json
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.native import BIAS, DECODER, ENCODER, KEY, KIND, MAX_ACT, THRESHOLD, SaeCard
from pilothouse.steering.sae_rows import blocks, first_not_finite

SaeDtype = Literal["float32", "float16", "bfloat16"]
_CODES: dict[SaeDtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor by name, in the order in which they lie in the file."""


def save_sae(sae: Sae, path: Path, *, name: str | None = None, dtype: SaeDtype = "float32") -> None:
    """Write `sae` as one native file (`sae_formats.native`), called `name`, else as it is called already.

    The matrices are stored as `dtype`, biases and thresholds always as float32; a block of features is in memory at a
    time. A reader meets the old file or the new one, never half of one. The card's `config` says what it was made of.
    ArtefactError when a number is not finite or too large for `dtype`, and when the file cannot be written.
    """
    text = json.dumps(_card(sae, name), ensure_ascii=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                _write(file, sae, text, dtype)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror or error}") from None


def _card(sae: Sae, name: str | None) -> dict[str, Any]:
    card = {
        "format": 1,
        "kind": KIND,
        "name": check_name(name or sae.name),
        "model": sae.model,
        "layer": sae.layer,
        "site": "resid_post",
        "architecture": sae.architecture,
        "activation": sae.activation,
        "why_not_read": sae.why_not_read,
        "config": _origin(sae),
    }
    try:
        parse_json(json.dumps(card, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"what is known of the SAE cannot be written as JSON: {error}") from None
    RawArtefact({}, card).checked_card(SaeCard)
    return card


def _origin(sae: Sae) -> Any:
    # A native file that is written again was still made of what it was made of first.
    if sae.format == KEY:
        return sae.card.get("config")
    source = {"format": sae.format, "file": sae.decoder.path.name, "digest": sae.digest}
    return {"source": source, "card": dict(sae.card)}


def _write(file: IO[bytes], sae: Sae, card: str, dtype: SaeDtype) -> None:
    layout = _layout(sae, dtype)
    header, begins = _header(layout, card)
    file.write(header)
    file.seek(begins[DECODER])
    for start, stop in blocks(sae.d_sae, sae.d_in):
        file.write(_stored(DECODER, start, sae.decoder.block(start, stop), dtype))
    vectors: dict[str, Float32] = {}
    if sae.encoder is not None:
        file.seek(begins[ENCODER])
        biases = []
        for start, stop in blocks(sae.d_sae, sae.d_in):
            encoder, bias = sae.encoder.folded_block(start, stop)
            file.write(_stored(ENCODER, start, encoder, dtype))
            biases.append(bias)
        vectors = {BIAS: np.concatenate(biases), THRESHOLD: _not_negative(THRESHOLD, sae.encoder.threshold)}
    if sae.max_acts is not None:
        vectors[MAX_ACT] = _not_negative(MAX_ACT, _max_acts(sae, sae.max_acts))
    for name, values in vectors.items():
        file.seek(begins[name])
        file.write(values.astype("<f4").tobytes())


def _layout(sae: Sae, dtype: SaeDtype) -> Layout:
    # Halves last: what follows them might not lie on a multiple of its size.
    reads, matrix = sae.encoder is not None, (_CODES[dtype], (sae.d_sae, sae.d_in))
    vectors = [BIAS, THRESHOLD] * reads + [MAX_ACT] * (sae.max_acts is not None)
    return {**dict.fromkeys(vectors, ("F32", (sae.d_sae,))), **dict.fromkeys([DECODER] + [ENCODER] * reads, matrix)}


def _header(layout: Layout, card: str) -> tuple[bytes, dict[str, int]]:
    """What a safetensors file begins with, and where in the file each tensor does."""
    entries: dict[str, Any] = {"__metadata__": {CARD_KEY: card}}
    end = 0
    for name, (code, shape) in layout.items():
        begin, end = end, end + _BYTES[code] * math.prod(shape)
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: data + entries[name]["data_offsets"][0] for name in layout}


def _stored(name: str, start: int, rows: Float32, dtype: SaeDtype) -> bytes:
    """The bytes of the rows [n, d_in] of the features from `start` on."""
    import torch

    # numpy has no bfloat16.
    cast = torch.tensor(rows).to(getattr(torch, dtype))
    if (bad := first_not_finite(cast.float().numpy())) is not None:
        raise ArtefactError(f"row {start + bad} of {name} holds numbers too large for {dtype}")
    data: bytes = cast.view(torch.uint8).numpy().tobytes()
    return data


def _max_acts(sae: Sae, stored: Float32) -> Float32:
    """The largest activations in units of the decoder rows, 0 where none is known."""
    if not sae.unit_decoder:
        return stored
    return np.fromiter(_largest(sae), dtype=np.float32, count=sae.d_sae)


def _largest(sae: Sae) -> Iterator[float]:
    return (sae.max_act(feature) or 0.0 for feature in range(sae.d_sae))


def _not_negative(name: str, values: Float32) -> Float32:
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ArtefactError(f"{name} must be finite and not negative")
    return values
