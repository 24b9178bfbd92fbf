"""What is read is what was written: the same rows at the same layers, with their origin in the card."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_support.files import WRITERS, write, write_caa, write_gguf, write_plain, write_svec, write_torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering import ImportOptions, Vector, import_vector, load_vector, save_vector

RNG = np.random.default_rng(0)
ROWS: dict[int, Float32] = {layer: RNG.standard_normal(6).astype(np.float32) for layer in (1, 2, 10)}


def assert_rows(vector: Vector, rows: dict[int, Float32]) -> None:
    assert {layer: row.tolist() for layer, row in vector.direction.layers.items()} == {
        layer: row.tolist() for layer, row in rows.items()
    }
    assert all(row.dtype == np.float32 for row in vector.direction.layers.values())


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_rows_at_the_same_layers(form: str, tmp_path: Path) -> None:
    path = write(form, tmp_path, ROWS)
    vector = import_vector(path)
    assert_rows(vector, ROWS)
    assert (vector.name, vector.model, vector.site, vector.default_layers) == ("happy", None, "resid_post", (1, 2, 10))
    source = vector.card["source"]
    assert source["file"] == path.name
    assert source["layer_offset"] == 0
    assert "0-based" in source["convention"]
    digests = [source["sha256"]] if path.is_file() else list(source["sha256"].values())
    files = [path] if path.is_file() else sorted(path.iterdir())
    assert digests == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.mark.parametrize("form", WRITERS)
def test_what_is_converted_loads_as_ours(form: str, tmp_path: Path) -> None:
    options = ImportOptions(name="glad", model="org/tiny", layer_offset=-1, layers=(9, 0))
    vector = import_vector(write(form, tmp_path, ROWS), options)
    assert_rows(vector, {0: ROWS[1], 9: ROWS[10]})
    save_vector(vector, tmp_path / "ours.safetensors")
    again = load_vector(tmp_path / "ours.safetensors")
    assert (again.name, again.model, again.digest, again.card) == ("glad", "org/tiny", vector.digest, vector.card)
    assert again.card["source"]["layer_offset"] == -1
    assert again.default_layers == (0, 9)


@pytest.mark.parametrize("form", ["gguf", "svec", "plain"])
def test_a_file_is_told_by_its_content(form: str, tmp_path: Path) -> None:
    path = write(form, tmp_path, ROWS)
    moved = path.rename(tmp_path / "download")
    assert_rows(import_vector(moved), ROWS)


@pytest.mark.parametrize(
    ("form", "hint"), [("gguf", "llama"), ("caa", "tiny"), ("svec", "llama"), ("plain", None), ("torch", None)]
)
def test_hints_at_the_model_are_kept_and_not_enforced(form: str, hint: str | None, tmp_path: Path) -> None:
    vector = import_vector(write(form, tmp_path, ROWS))
    assert vector.card["source"].get("model_hint") == hint
    assert vector.model is None


def test_one_file_of_caa(tmp_path: Path) -> None:
    folder = write_caa(tmp_path / "happy", ROWS)
    vector = import_vector(folder / "vec_layer_10_tiny.pt")
    assert_rows(vector, {10: ROWS[10]})
    assert vector.name == "vec_layer_10_tiny"
    assert vector.method == "mean_difference"
    assert vector.card["source"]["trained_at"] == "the letter of the answer"


@pytest.mark.parametrize(
    "name",
    [
        "layer_7.pt",
        "layer7.pt",
        "L7.pt",
        "7.pt",
        "happy-layer-07.pt",
        "honesty_Layer.7.pt",
        "vec_layer_7_Llama-2-7b.pth",
    ],
)
def test_layers_in_names_of_files(name: str, tmp_path: Path) -> None:
    assert_rows(import_vector(write_caa(tmp_path / "v", {name: ROWS[1]})), {7: ROWS[1]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions_of_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    row = torch.tensor([1.0, -0.333, 65280.0, 6e-5], dtype=dtype)
    torch.save(torch.nn.Parameter(row), tmp_path / "layer_3.pt")
    assert import_vector(tmp_path / "layer_3.pt").direction.layers[3].tolist() == row.float().tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_precisions_of_gguf(dtype: type, tmp_path: Path) -> None:
    row: NDArray[Any] = np.array([1.0, -0.333, 65280.0, 6e-5], dtype=dtype)
    vector = import_vector(write_gguf(tmp_path / "v.gguf", {3: row}))
    assert vector.direction.layers[3].tolist() == row.astype(np.float32).tolist()


def test_bfloat16_in_gguf(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType as Type
    from gguf import GGUFWriter
    from gguf.quants import quantize

    row = np.array([1.0, -0.5, 3.0, 0.25], dtype=np.float32)
    writer = GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_tensor("direction.3", quantize(row, Type.BF16), raw_dtype=Type.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert import_vector(tmp_path / "v.gguf").direction.layers[3].tolist() == row.tolist()


def test_llama_cpp_has_no_layer_0_and_repeng_may(tmp_path: Path) -> None:
    assert_rows(import_vector(write_gguf(tmp_path / "v.gguf", {0: ROWS[1], 1: ROWS[2]})), {0: ROWS[1], 1: ROWS[2]})


def test_layer_count_may_be_the_models(tmp_path: Path) -> None:
    assert import_vector(write_gguf(tmp_path / "v.gguf", ROWS, count=36)).card["source"]["layer_count"] == 36


def test_a_file_that_llama_cpps_generator_writes(tmp_path: Path) -> None:
    """By hand, as its C++ does: version 3, a signed layer_count, rows aligned to 32 bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    header = struct.pack("<4sIQQ", b"GGUF", 3, len(ROWS), 3)
    for key, value in (("general.architecture", "controlvector"), ("controlvector.model_hint", "llama")):
        header += text(key) + struct.pack("<I", 8) + text(value)
    header += text("controlvector.layer_count") + struct.pack("<Ii", 5, len(ROWS))
    for i, layer in enumerate(ROWS):
        header += text(f"direction.{layer}") + struct.pack("<IQIQ", 1, 6, 0, 32 * i)
    body = b"".join(row.astype("<f4").tobytes().ljust(32, b"\0") for row in ROWS.values())
    (tmp_path / "v.gguf").write_bytes(header + b"\0" * (-len(header) % 32) + body)
    assert_rows(import_vector(tmp_path / "v.gguf"), ROWS)


@pytest.mark.parametrize(
    "name",
    [
        "layer.{}",
        "layer_{}",
        "layers.{}",
        "layer{}",
        "{}",
        "direction.{}",
        "blocks.{}.hook_resid_post",
        "model.layers.{}",
    ],
)
def test_names_of_tensors(name: str, tmp_path: Path) -> None:
    path = write_plain(tmp_path / "v.safetensors", {name.format(layer): row for layer, row in ROWS.items()})
    vector = import_vector(path)
    assert_rows(vector, ROWS)
    assert vector.card["source"]["named_as"] == name.replace("{}", "{L}")


def test_metadata_hints_at_the_model(tmp_path: Path) -> None:
    save_file({"layer.1": ROWS[1]}, tmp_path / "v.safetensors", metadata={"model": "org/tiny"})
    assert import_vector(tmp_path / "v.safetensors").card["source"]["model_hint"] == "org/tiny"


def test_a_torch_dictionary_keyed_by_text(tmp_path: Path) -> None:
    torch.save({f"layer.{layer}": torch.tensor(row) for layer, row in ROWS.items()}, tmp_path / "v.pt")
    assert_rows(import_vector(tmp_path / "v.pt"), ROWS)


def test_ibm_reads_at_the_output_and_adds_at_the_input(tmp_path: Path) -> None:
    path = write_svec(tmp_path / "v.svec", ROWS)
    assert_rows(import_vector(path), ROWS)
    vector = import_vector(path, ImportOptions(layer_offset=-1))
    assert_rows(vector, {0: ROWS[1], 1: ROWS[2], 9: ROWS[10]})
    assert "-1" in vector.card["source"]["convention"]
    assert vector.card["source"]["model_type"] == "llama"


def test_names_are_made_from_files(tmp_path: Path) -> None:
    assert import_vector(write_torch(tmp_path / "_Very happy (v2).pt", ROWS)).name == "Very-happy-v2-"
    with pytest.raises(ArtefactError, match="--name"):
        import_vector(write_torch(tmp_path / "幸福.pt", ROWS))
    with pytest.raises(ArtefactError, match="cannot be a name"):
        import_vector(write_torch(tmp_path / "v.pt", ROWS), ImportOptions(name="a+b"))


def ours(path: Path, **changes: object) -> Path:
    vector = Vector(
        "ours", Direction(ROWS), "org/tiny", "resid_post", "pca", (2,), {1: 1.5, 2: 2.5}, (1.0, 2.0), {"note": "kept"}
    )
    save_vector(vector, path)
    return path


def test_a_file_of_ours_stays_as_it_is(tmp_path: Path) -> None:
    path = ours(tmp_path / "v.safetensors")
    vector = import_vector(path)
    assert (vector.card, vector.digest) == (load_vector(path).card, load_vector(path).digest)


def test_a_file_of_ours_can_be_renamed_and_cut_down(tmp_path: Path) -> None:
    path = ours(tmp_path / "v.safetensors")
    vector = import_vector(path, ImportOptions(name="less", model="tiny", layers=(1, 10)))
    assert_rows(vector, {1: ROWS[1], 10: ROWS[10]})
    assert (vector.name, vector.default_layers, dict(vector.resid_norm)) == ("less", (1, 10), {1: 1.5})
    assert (vector.recommended, vector.method, vector.card["note"]) == ((1.0, 2.0), "pca", "kept")
    save_vector(vector, tmp_path / "less.safetensors")
    again = import_vector(tmp_path / "less.safetensors", ImportOptions(name="still-less", layers=(1,)))
    assert again.card["source"]["source"]["file"] == "v.safetensors"
    json.dumps(again.card, allow_nan=False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ImportOptions(layer_offset=1), "--layer-offset"),
        (ImportOptions(model="org/other"), "org/tiny"),
        (ImportOptions(layers=(3,)), "no layer 3"),
    ],
)
def test_a_file_of_ours_is_not_made_to_say_otherwise(options: ImportOptions, why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why):
        import_vector(ours(tmp_path / "v.safetensors"), options)
