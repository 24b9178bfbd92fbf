"""Files as other libraries write them, made with those libraries or as their code does, never with what reads them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from safetensors.numpy import save_file


def write_gguf(path: Path, rows: Mapping[Any, Any], arch: str = "controlvector", count: int | None = None) -> Path:
    """As repeng's `ControlVector.export_gguf` does."""
    writer = GGUFWriter(path, arch)
    writer.add_string(f"{arch}.model_hint", "llama")
    writer.add_uint32(f"{arch}.layer_count", len(rows) if count is None else count)
    for layer, row in rows.items():
        writer.add_tensor(layer if isinstance(layer, str) else f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_caa(folder: Path, rows: Mapping[Any, Any]) -> Path:
    """As CAA's `generate_save_vectors` does: a file a layer."""
    folder.mkdir(exist_ok=True)
    for layer, row in rows.items():
        name = layer if isinstance(layer, str) else f"vec_layer_{layer}_tiny.pt"
        torch.save(torch.tensor(row) if isinstance(row, np.ndarray) else row, folder / name)
    return folder


def write_svec(path: Path, rows: Mapping[Any, Any]) -> Path:
    """As IBM's `SteeringVector.save` does."""
    data = {
        "model_type": "llama",
        "directions": {layer: np.asarray(row).tolist() for layer, row in rows.items()},
        "explained_variances": dict.fromkeys(rows, 0.5),
    }
    path.write_text(json.dumps(data))
    return path


def write_plain(path: Path, rows: Mapping[Any, Any]) -> Path:
    """Safetensors without a card."""
    save_file({layer if isinstance(layer, str) else f"layer_{layer}": row for layer, row in rows.items()}, path)
    return path


def write_torch(path: Path, rows: Mapping[Any, Any]) -> Path:
    """A dictionary {layer: tensor} that torch wrote."""
    torch.save({layer: torch.tensor(row) for layer, row in rows.items()}, path)
    return path


WRITERS: dict[str, tuple[str, Callable[[Path, Mapping[Any, Any]], Path]]] = {
    "gguf": ("happy.gguf", write_gguf),
    "caa": ("happy", write_caa),
    "svec": ("happy.svec", write_svec),
    "plain": ("happy.safetensors", write_plain),
    "torch": ("happy.pt", write_torch),
}


def write(form: str, folder: Path, rows: Mapping[Any, Any]) -> Path:
    """`rows` by layer in the format `form` of WRITERS."""
    name, writer = WRITERS[form]
    return writer(folder / name, rows)


def write_head(folder: Path, config: Any = None, state: Any = None) -> Path:
    """As hallucination_probes' `ValueHeadProbe.save` does, for a head of width 4 at layer 2."""
    folder.mkdir(exist_ok=True)
    head = torch.nn.Linear(4, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.25]]))
        head.bias.fill_(-0.75)
    torch.save(head.state_dict() if state is None else state, folder / "probe_head.bin")
    written = {"target_layer_name": "LlamaDecoderLayer", "layer_idx": 2, "hidden_size": 4} if config is None else config
    (folder / "probe_config.json").write_text(json.dumps(written, indent=4))
    return folder
