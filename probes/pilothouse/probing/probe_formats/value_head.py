"""Heads of hallucination_probes (Obeso et al. 2025): ``probe_config.json`` and ``probe_head.bin`` in one folder.

Read from the published code (`value_head_probe.py`): a forward hook on the model's layer `layer_idx` gives the head the
**output** of that 0-based block, as does this server's site of the same number; ``logit = weight . h + bias`` at every
token, and its sigmoid is the probability that the token is hallucinated. ``probe_head.bin`` is the state dict of
``Linear(hidden_size, 1)``: weight [1, hidden_size], bias [1].

Heads that were trained together with a LoRA adapter are refused: the adapter changes what the model says and the stream
that the head reads, and without it the head's scores mean something else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilothouse.core.artefact import NAME_PATTERN, check_name, parse_json
from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import as_row, load_torch, read_foreign, sha256_hex
from pilothouse.core.sites import Float32
from pilothouse.probing.probe import Probe
from pilothouse.probing.probe_formats.options import ProbeOptions

CONFIG, HEAD = "probe_config.json", "probe_head.bin"


def read_value_head(folder: Path, options: ProbeOptions) -> Probe:
    """The head in `folder` as a probe of one layer, its origin under the card's key `source`.

    ArtefactError when a file is missing or damaged, config and head disagree, or there is an adapter.
    """
    _refuse_adapter(folder)
    config_bytes, head_bytes = read_foreign(folder / CONFIG), read_foreign(folder / HEAD)
    config = parse_json(config_bytes)
    if not isinstance(config, dict):
        raise ArtefactError(f"{CONFIG} must be a JSON object")
    layer, width = _layer(config), _whole(config, "hidden_size")
    weight, bias = _linear(load_torch(head_bytes))
    if len(weight) != width:
        raise ArtefactError(f"{HEAD} is {len(weight)} wide, but {CONFIG} says hidden_size {width}")
    source = {
        "format": "hallucination_probes value head",
        "files": {CONFIG: sha256_hex(config_bytes), HEAD: sha256_hex(head_bytes)},
        "convention": "layer_idx is the 0-based block whose output is read",
        "target_layer_name": config.get("target_layer_name"),
    }
    return Probe(
        name=check_name(options.name) if options.name else _name_from(folder),
        label=options.label,
        alarm=options.alarm,
        aggregate=options.aggregate,
        threshold=options.threshold,
        weights={layer: weight},
        bias=bias,
        model=options.model,
        card={"source": source},
    )


def _refuse_adapter(folder: Path) -> None:
    if found := sorted(path.name for path in folder.glob("adapter_*")):
        raise ArtefactError(
            f"{found[0]} lies beside the head: it was trained with a LoRA adapter, which changes what the model says "
            "and the stream that the head reads. Use a head that was trained without one"
        )


def _layer(config: Mapping[str, Any]) -> int:
    name = config.get("target_layer_name")
    match = re.search(r"(?:^|\.)(?:layers|h)\.([0-9]{1,6})$", name) if isinstance(name, str) else None
    if "layer_idx" not in config and match:
        return int(match[1])
    layer = _whole(config, "layer_idx")
    if match and int(match[1]) != layer:
        raise ArtefactError(f"{CONFIG} says layer_idx {layer}, but target_layer_name {name!r}")
    return layer


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 0:
        given = f"{key} {value!r}" if key in config else f"no {key}"
        raise ArtefactError(f"{CONFIG} has {given}: it must be a whole number from 0")
    return value


def _linear(state: Any) -> tuple[Float32, float]:
    if not isinstance(state, Mapping) or set(state) != {"weight", "bias"}:
        has = ", ".join(map(str, state)) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ArtefactError(f"{HEAD} must hold weight and bias of one linear layer, and holds {has or 'nothing'}")
    shape = list(getattr(state["weight"], "shape", ()))
    if len(shape) != 2 or shape[0] != 1:
        hint = ": it is transposed" if len(shape) == 2 and shape[1] == 1 else ""
        raise ArtefactError(f"weight in {HEAD} must be of shape [1, hidden_size], not {shape}{hint}")
    bias = as_row(f"bias in {HEAD}", state["bias"])
    if len(bias) != 1:
        raise ArtefactError(f"bias in {HEAD} must be one number, not {len(bias)}")
    return as_row(f"weight in {HEAD}", state["weight"][0]), float(bias[0])


def _name_from(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:128]
    if not re.fullmatch(NAME_PATTERN, name):
        raise ArtefactError(f"no name can be made from {folder.name!r}: give one with --name")
    return name
