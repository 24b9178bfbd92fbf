"""Refuse rather than mis-steer: every format, every fault, and a message that names it."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from format_support.files import WRITERS, write, write_caa, write_gguf, write_plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import ModelShape
from pilothouse.steering import ImportOptions, import_vector

GOOD = np.arange(1, 5, dtype=np.float32)


BAD_ROWS: dict[str, tuple[dict[Any, Any], str]] = {
    "no layers": ({}, "no direction|no .pt files"),
    "two widths": ({1: GOOD, 2: np.ones(5, np.float32)}, "one width, not 4 and 5"),
    "one row of two dimensions": ({1: np.ones((1, 4), np.float32)}, r"\[1, 4\]"),
    "transposed": ({1: np.ones((4, 1), np.float32)}, r"\[4, 1\]"),
    "a matrix": ({1: np.ones((3, 4), np.float32)}, r"\[3, 4\]"),
    "nan": ({1: GOOD, 2: np.array([1, np.nan, 0, 0], np.float32)}, "NaN or infinite"),
    "inf": ({1: np.array([1, -np.inf, 0, 0], np.float32)}, "NaN or infinite"),
}


@pytest.mark.parametrize(("rows", "why"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("form", WRITERS)
def test_bad_rows(form: str, rows: dict[Any, Any], why: str, tmp_path: Path) -> None:
    path = write(form, tmp_path, rows)
    if form == "plain" and rows and np.ndim(next(iter(rows.values()))) != 1:
        why = "one row of numbers"
    with pytest.raises(ArtefactError, match=why) as caught:
        import_vector(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["caa", "torch", "plain", "gguf"])
def test_whole_numbers(form: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="float"):
        import_vector(write(form, tmp_path, {1: np.ones(4, np.int32)}))


@pytest.mark.parametrize(
    "row", ['["a", 1]', "[true, 1]", "[null]", "5", '"text"', "[]", "[1e400, 1]", "[" + "9" * 400 + "]"]
)
def test_directions_of_svec_that_are_no_numbers(row: str, tmp_path: Path) -> None:
    (tmp_path / "v.svec").write_text('{"model_type": "llama", "directions": {"3": ' + row + "}}")
    with pytest.raises(ArtefactError, match="'3'"):
        import_vector(tmp_path / "v.svec")


def twice_in_gguf(folder: Path) -> Path:
    path = write_gguf(folder / "v.gguf", {1: GOOD, 2: GOOD})
    path.write_bytes(path.read_bytes().replace(b"direction.2", b"direction.1"))
    return path


def twice_in_svec(folder: Path) -> Path:
    (folder / "v.svec").write_text('{"directions": {"3": [1.0], "3": [2.0]}}')
    return folder / "v.svec"


def twice_in_torch(folder: Path) -> Path:
    torch.save({3: torch.ones(4), "3": torch.ones(4)}, folder / "v.pt")
    return folder / "v.pt"


TWICE: dict[str, Callable[[Path], Path]] = {
    "gguf": twice_in_gguf,
    "caa": lambda folder: write_caa(folder / "v", {"vec_layer_3_a.pt": GOOD, "layer_3.pt": GOOD}),
    "svec": twice_in_svec,
    "plain": lambda folder: write_plain(folder / "v.safetensors", {"layer_3": GOOD, "layer_03": GOOD}),
    "torch": twice_in_torch,
}


@pytest.mark.parametrize("form", WRITERS)
def test_a_layer_twice(form: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"twice|[Dd]uplicated"):
        import_vector(TWICE[form](tmp_path))


STRANGE: dict[str, tuple[str, dict[Any, Any], str]] = {
    "gguf with other tensors": ("gguf", {1: GOOD, "bias.1": GOOD}, r"bias\.1"),
    "gguf with a padded layer": ("gguf", {"direction.01": GOOD}, r"direction\.01"),
    "caa without a layer": ("caa", {"happy.pt": GOOD}, r"'happy\.pt' gives no layer"),
    "caa with two layers": ("caa", {"layer_3_layer_4.pt": GOOD}, "several layers"),
    "caa of two models": ("caa", {"vec_layer_3_a.pt": GOOD, "vec_layer_4_b.pt": GOOD}, "different models"),
    "caa with no tensor": ("caa", {1: [1.0, 2.0]}, "a list"),
    "svec with a padded layer": ("svec", {"03": GOOD}, "'03' is no layer"),
    "svec with a named layer": ("svec", {"last": GOOD}, "'last' is no layer"),
    "plain in two forms": ("plain", {"layer.3": GOOD, "4": GOOD}, "more than one way"),
    "plain without a layer": ("plain", {"steering_vector": GOOD}, "names no layer"),
    "plain before a block": ("plain", {"blocks.3.hook_resid_pre": GOOD}, "before a block"),
    "plain of a probe": ("plain", {"weight.3": GOOD, "bias": GOOD[:1]}, "names no layer"),
    "torch keyed by pairs": ("torch", {(1, 2): GOOD}, "keyed by layers"),
    "torch without layers": ("torch", {"vector": GOOD}, "names no layer"),
}


@pytest.mark.parametrize(("form", "rows", "why"), STRANGE.values(), ids=STRANGE)
def test_strange_names_and_kinds(form: str, rows: dict[Any, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why):
        import_vector(write(form, tmp_path, rows))


@pytest.mark.parametrize(("kind", "why"), [({"arch": "llama"}, "'llama'"), ({"count": 1}, "1 layers and has 2")])
def test_gguf_of_another_kind(kind: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why):
        import_vector(write_gguf(tmp_path / "v.gguf", {1: GOOD, 2: GOOD}, **kind))


def test_quantised_directions(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType as Type
    from gguf import GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_tensor("direction.3", quantize(np.ones((1, 32), np.float32), Type.Q8_0), raw_dtype=Type.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ArtefactError, match="Q8_0"):
        import_vector(tmp_path / "v.gguf")


def test_a_list_longer_than_the_file_does_not_go_on_for_ever(tmp_path: Path) -> None:
    key = b"general.tags"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    (tmp_path / "v.gguf").write_bytes(header + struct.pack("<IIQ", 9, 4, 1 << 60))
    with pytest.raises(ArtefactError, match="ends before"):
        import_vector(tmp_path / "v.gguf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(sorted(WRITERS)),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_a_damaged_file_is_refused_or_still_a_sound_vector(
    form: str, edits: list[tuple[int, int]], tmp_path: Path
) -> None:
    path = one_file(form, tmp_path)
    data = bytearray(path.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(data)
    try:
        vector = import_vector(path)
    except ArtefactError:
        return
    assert all(np.isfinite(row).all() and row.ndim == 1 for row in vector.direction.layers.values())
    json.dumps(vector.card, allow_nan=False, ensure_ascii=False).encode()


def test_a_hint_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "v.svec").write_text('{"model_type": "\\ud800", "directions": {"1": [1.0]}}')
    with pytest.raises(ArtefactError, match="surrogates"):
        import_vector(tmp_path / "v.svec")


def one_file(form: str, folder: Path) -> Path:
    # Eight wide: narrower rows are padded in GGUF, and a cut there takes nothing away.
    path = write(form, folder, {1: np.ones(8, np.float32), 2: np.ones(8, np.float32)})
    return path / "vec_layer_1_tiny.pt" if path.is_dir() else path


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("form", WRITERS)
def test_files_cut_short(form: str, share: float, tmp_path: Path) -> None:
    path = one_file(form, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: max(1, int(len(data) * share))])
    with pytest.raises(ArtefactError, match=path.name):
        import_vector(path)


@pytest.mark.parametrize("form", WRITERS)
def test_empty_files(form: str, tmp_path: Path) -> None:
    path = one_file(form, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ArtefactError, match="empty"):
        import_vector(path)


class Trap:
    """Says that it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize(
    "name", ["v.pkl", "v.joblib", "v.pickle", "v", "v.gguf", "v.svec", "layer_3.pt", "layer_3.pth"]
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_are_never_read(name: str, protocol: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Trap(), protocol=protocol))
    with pytest.raises(ArtefactError, match=name) as caught:
        import_vector(tmp_path / name)
    if protocol:
        assert "docs/formats.md" in str(caught.value)


@pytest.mark.parametrize("content", [Trap(), {"layer.1": Trap()}, SimpleNamespace(layer_activations={1: GOOD})])
def test_torch_files_with_objects_are_pickles_too(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "layer_3.pt")
    with pytest.raises(ArtefactError, match=r"Python pickle.*docs/formats\.md"):
        import_vector(tmp_path / "layer_3.pt")


def test_a_tensor_that_claims_more_than_it_stores(tmp_path: Path) -> None:
    torch.save(torch.ones(1).expand(1 << 40), tmp_path / "layer_3.pt")
    with pytest.raises(ArtefactError, match="one row"):
        import_vector(tmp_path / "layer_3.pt")


@pytest.mark.parametrize("tensor", [torch.ones(4).to_sparse(), torch.ones(4, device="meta"), torch.ones(4) + 1j])
def test_tensors_without_plain_numbers(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save(tensor, tmp_path / "layer_3.pt")
    with pytest.raises(ArtefactError, match=r"layer_3\.pt"):
        import_vector(tmp_path / "layer_3.pt")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ImportOptions(layer_offset=-2), "layer 1 would be -1"),
        (ImportOptions(layers=(1, 5)), "no layer 5, only 1, 2"),
        (ImportOptions(layers=(1, 1)), "twice"),
        (ImportOptions(layers=()), "at least one"),
        (ImportOptions(layer_offset=1, layers=(1,)), "no layer 1, only 2, 3"),
    ],
)
@pytest.mark.parametrize("form", WRITERS)
def test_layers_that_cannot_be(form: str, options: ImportOptions, why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why):
        import_vector(write(form, tmp_path, {1: GOOD, 2: GOOD}), options)


@pytest.mark.parametrize(
    ("layer", "width", "model", "why"),
    [(1, 5, None, "5 wide"), (6, 4, None, "layer 6"), (4, 4, None, "no site"), (1, 4, "org/other", "org/other")],
)
@pytest.mark.parametrize("form", WRITERS)
def test_what_does_not_fit_the_model(
    form: str, layer: int, width: int, model: str | None, why: str, shape: ModelShape, tmp_path: Path
) -> None:
    vector = import_vector(write(form, tmp_path, {layer: np.ones(width, np.float32)}), ImportOptions(model=model))
    with pytest.raises(ArtefactError, match=why):
        vector.check_fits(shape)


@pytest.mark.parametrize(
    "content", [b"text", b"{}", b'{"directions": []}', b"[]", b"[" * 100_000, b"GGUF", b"PK\x03\x04", b"\x93NUMPY"]
)
@pytest.mark.parametrize("name", ["v", "v.svec", "v.gguf", "v.safetensors", "layer_1.pt"])
def test_other_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=name):
        import_vector(tmp_path / name)


def test_missing_files_and_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtefactError, match="absent"):
        import_vector(tmp_path / "absent.gguf")
    monkeypatch.setattr("pilothouse.core.foreign.MAX_BYTES", 100)
    with pytest.raises(ArtefactError, match="is it a model"):
        import_vector(write_gguf(tmp_path / "v.gguf", {1: GOOD}))


def test_folders_of_other_files_say_what_they_have(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="nothing else"):
        import_vector(tmp_path)
    write_gguf(tmp_path / "happy.gguf", {1: GOOD})
    (tmp_path / "README.md").write_text(json.dumps({}))
    with pytest.raises(ArtefactError, match=r"name one of happy\.gguf"):
        import_vector(tmp_path)
