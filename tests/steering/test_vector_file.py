import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from pilothouse.core.directions import Direction, digest_rows
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.steering import Vector, load_vector, load_vectors, save_vector, vector_from_bytes

Write = Callable[..., Path]
CARD = {"format": 1, "kind": "vector", "name": "honest"}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def a_file(tensors: dict[str, Any], **card: Any) -> bytes:
    return bytes(save(tensors, metadata={"pilothouse": json.dumps({**CARD, **card})}))


def test_a_minimal_card_is_enough(write_file: Write) -> None:
    vector = load_vector(write_file({"layer.5": np.ones(4, np.float32), "layer.2": np.arange(4, dtype=np.float32)}))
    assert (vector.name, vector.model, vector.site, vector.method) == ("honest", None, "resid_post", None)
    assert vector.default_layers == (2, 5)
    assert vector.recommended is None
    assert dict(vector.resid_norm) == {}
    assert vector.card == CARD
    assert vector.direction.layers[2].tolist() == [0, 1, 2, 3]
    assert vector.digest == "sha256:" + digest_rows(vector.direction.layers).hex()


def test_a_full_card_is_read_and_further_keys_are_kept(write_file: Write) -> None:
    path = write_file(
        model="org/tiny",
        site="resid_post",
        method="pca",
        default_layers=[2],
        resid_norm={"2": 12.5},
        recommended=[-2, 8.5],
        trained_by={"who": "somebody", "on": [1, 2.5, None]},
    )
    vector = load_vector(path)
    assert (vector.model, vector.method, vector.default_layers) == ("org/tiny", "pca", (2,))
    assert vector.resid_norm == {2: 12.5}
    assert vector.recommended == (-2.0, 8.5)
    assert vector.card["trained_by"] == {"who": "somebody", "on": [1, 2.5, None]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precisions_are_converted_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    row = torch.tensor([1.0, -0.333, 65280.0, 6e-5], dtype=dtype)
    path = tmp_path / "v.safetensors"
    path.write_bytes(save_torch({"layer.0": row}, metadata={"pilothouse": json.dumps(CARD)}))
    stored = load_vector(path).direction.layers[0]
    assert stored.dtype == np.float32
    assert stored.tolist() == row.float().tolist()


@given(
    rows=st.dictionaries(st.integers(0, 99), hnp.arrays(np.float32, 5, elements=finite), min_size=1, max_size=4),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True),
    model=st.none() | st.text(st.characters(codec="utf-8")),
    extra=st.dictionaries(st.sampled_from(["note", "source"]), st.text(st.characters(codec="utf-8"))),
)
@settings(max_examples=60, deadline=None)
def test_saving_and_loading_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[int, Float32],
    name: str,
    model: str | None,
    extra: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("vectors") / "v.safetensors"
    vector = Vector(
        name=name,
        direction=Direction(rows),
        model=model,
        site="resid_post",
        method="by hand",
        default_layers=(min(rows),),
        resid_norm=dict.fromkeys(rows, 1.5),
        recommended=(0.5, 4.0),
        card=extra,
    )
    save_vector(vector, path)
    again = load_vector(path)
    assert again.digest == vector.digest
    assert {layer: row.tobytes() for layer, row in again.direction.layers.items()} == vector.direction.payload
    for field in ("name", "model", "site", "method", "default_layers", "resid_norm", "recommended"):
        assert getattr(again, field) == getattr(vector, field)
    assert extra.items() <= again.card.items()
    save_vector(again, path)
    assert load_vector(path).card == again.card


GOOD = np.ones(4, np.float32)
BAD_TENSORS: dict[str, dict[str, Any]] = {
    "no layers": {},
    "nan": {"layer.0": np.array([1, np.nan], np.float32)},
    "inf": {"layer.0": np.array([1, -np.inf], np.float32)},
    "float64": {"layer.0": np.ones(4)},
    "integers": {"layer.0": np.ones(4, np.int32)},
    "two dimensions": {"layer.0": np.ones((1, 4), np.float32)},
    "no dimensions": {"layer.0": np.ones((), np.float32)},
    "empty": {"layer.0": np.ones(0, np.float32)},
    "unknown name": {"layer.0": GOOD, "bias": np.ones(1, np.float32)},
    "no number": {"layer.first": GOOD},
    "leading zero": {"layer.01": GOOD},
    "negative": {"layer.-1": GOOD},
    "two widths": {"layer.0": GOOD, "layer.1": np.ones(5, np.float32)},
}


@pytest.mark.parametrize("tensors", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError):
        vector_from_bytes(a_file(tensors))


BAD_CARDS: dict[str, dict[str, Any]] = {
    "format 2": {"format": 2},
    "format true": {"format": True},
    "no format": {"format": None},
    "a probe": {"kind": "probe"},
    "another site": {"site": "mlp_out"},
    "model is a number": {"model": 3},
    "layer not in file": {"default_layers": [0, 7]},
    "layer twice": {"default_layers": [0, 0]},
    "no default layers": {"default_layers": []},
    "default layers are text": {"default_layers": ["0"]},
    "norm is text": {"resid_norm": {"0": "1.0"}},
    "norm of no layer": {"resid_norm": {"first": 1.0}},
    "norm is negative": {"resid_norm": {"0": -1.0}},
    "recommended backwards": {"recommended": [3, 1]},
    "recommended thrice": {"recommended": [1, 2, 3]},
    **{f"name {name!r}": {"name": name} for name in ("", "a/b", "../a", "a+b", ".a", "a b", "a\n", "ä", "a" * 129, 7)},
}


@pytest.mark.parametrize("card", BAD_CARDS.values(), ids=BAD_CARDS)
def test_bad_cards_are_refused_by_the_key_that_is_wrong(card: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=next(iter(card))):
        vector_from_bytes(a_file({"layer.0": GOOD}, **card))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"name": NaN}', "[" * 100_000, *(json.dumps(CARD)[:-1] + more for more in (
        ', "note": 1e999}', ', "note": Infinity}', ', "note": "\\ud800"}', ', "note": ' + "9" * 5000 + "}"
    ))],
    ids=lambda text: text[-24:] or "empty",
)  # fmt: skip
def test_cards_that_are_not_sound_json_are_refused(text: str) -> None:
    with pytest.raises(ArtefactError):
        vector_from_bytes(bytes(save({"layer.0": GOOD}, metadata={"pilothouse": text})))


def test_a_file_without_a_card_is_refused() -> None:
    with pytest.raises(ArtefactError, match="no card"):
        vector_from_bytes(bytes(save({"layer.0": GOOD})))


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_end_in_an_artefact_error(data: bytes) -> None:
    with pytest.raises(ArtefactError):
        vector_from_bytes(data)


@given(
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 60)
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_file_is_refused_or_still_a_sound_vector(edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(a_file({"layer.0": GOOD, "layer.1": GOOD}, resid_norm={"0": 2.5}, recommended=[1, 2]))
    for at, value in edits:
        data[at % len(data)] = value
    try:
        vector = vector_from_bytes(bytes(data[: len(data) - cut]))
    except ArtefactError:
        return
    assert all(np.isfinite(row).all() and row.ndim == 1 for row in vector.direction.layers.values())
    json.dumps(vector.card, allow_nan=False, ensure_ascii=False).encode()


def test_a_folder_is_loaded_by_name(write_file: Write, tmp_path: Path) -> None:
    write_file(name="one.safetensors")
    write_file(name="two.safetensors", card={**CARD, "name": "kind"})
    (tmp_path / "notes.txt").write_text("not a vector")
    assert {name: vector.name for name, vector in load_vectors(tmp_path).items()} == {
        "honest": "honest",
        "kind": "kind",
    }


def test_two_files_of_one_name_are_refused(write_file: Write, tmp_path: Path) -> None:
    write_file(name="one.safetensors")
    write_file(name="two.safetensors")
    with pytest.raises(ArtefactError, match=r"two\.safetensors.*'honest'"):
        load_vectors(tmp_path)


def test_a_bad_file_in_a_folder_is_named(write_file: Write, tmp_path: Path) -> None:
    write_file(name="good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ArtefactError, match=r"bad\.safetensors"):
        load_vectors(tmp_path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="absent"):
        load_vector(tmp_path / "absent.safetensors")
    with pytest.raises(ArtefactError, match="absent"):
        load_vectors(tmp_path / "absent")


def test_saving_replaces_the_file_and_leaves_nothing_else(write_file: Write, tmp_path: Path) -> None:
    vector = load_vector(write_file())
    save_vector(vector, tmp_path / "sub" / "copy.safetensors")
    save_vector(vector, tmp_path / "sub" / "copy.safetensors")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["copy.safetensors"]
    assert list(load((tmp_path / "sub" / "copy.safetensors").read_bytes())) == ["layer.2"]


@pytest.mark.parametrize("model", [None, "org/tiny", "tiny", "/models/tiny/", "other/tiny"])
def test_a_vector_of_the_served_model_fits(write_file: Write, shape: ModelShape, model: str | None) -> None:
    load_vector(write_file(model=model)).check_fits(shape)


@pytest.mark.parametrize(
    ("layer", "width", "model", "why"),
    [
        (2, 5, None, "5 wide"),
        (6, 4, None, "layer 6"),
        (4, 4, None, "no site"),
        (2, 4, "org/tiny-2", "tiny-2"),
        (2, 4, "org", "'org'"),
    ],
)
def test_what_does_not_fit_is_refused(
    write_file: Write, shape: ModelShape, layer: int, width: int, model: str | None, why: str
) -> None:
    vector = load_vector(write_file({f"layer.{layer}": np.ones(width, np.float32)}, model=model))
    with pytest.raises(ArtefactError, match=why):
        vector.check_fits(shape)


def test_loaded_rows_cannot_be_changed(write_file: Write) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_vector(write_file()).direction.layers[2][0] = 1.0
