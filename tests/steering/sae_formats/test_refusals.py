"""Files that could only be steered wrongly: every format with every fault, and a message that names it."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_support.layouts import BY_KEY, D_IN, D_SAE, LAYOUTS, Layout, Tensors

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import ModelShape
from pilothouse.steering import Sae, load_sae

EVERY = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.key)
DECLARED = pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.config], ids=lambda one: one.key)
TORCH = pytest.mark.parametrize(
    "layout", [one for one in LAYOUTS if one.weights.endswith((".pt", ".pth"))], ids=lambda one: one.key
)


def refused(path: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        load_sae(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(layout: Layout, ours: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    name = layout.names[ours]
    tensors = layout.tensors()
    return {**tensors, name: change(tensors[name]).contiguous()}


def sound(layout: Layout, root: Path) -> Sae:
    return load_sae(layout.write(root))


@EVERY
@pytest.mark.parametrize("matrix", ["W_enc", "W_dec"])
def test_transposed(layout: Layout, matrix: str, tmp_path: Path) -> None:
    path = layout.write(tmp_path, changed(layout, matrix, lambda tensor: tensor.T))
    message = refused(path)
    assert "transposed" in message
    assert layout.names[matrix] in message


@EVERY
@pytest.mark.parametrize("matrix", ["W_enc", "W_dec"])
def test_a_matrix_of_another_width(layout: Layout, matrix: str, tmp_path: Path) -> None:
    path = layout.write(tmp_path, changed(layout, matrix, lambda tensor: torch.zeros([n + 1 for n in tensor.shape])))
    message = refused(path)
    assert layout.names[matrix] in message
    assert "17" in message
    assert "41" in message


@DECLARED
def test_declared_sizes_that_are_not_the_tensors(layout: Layout, tmp_path: Path) -> None:
    assert refused(layout.write(tmp_path, layout.tensors(D_IN, D_SAE + 2)))
    if layout.key != "gemma-scope-2":
        assert refused(layout.write(tmp_path, layout.tensors(D_IN - 4, D_SAE)))


@EVERY
@pytest.mark.parametrize("bias", ["b_enc", "b_dec"])
def test_biases_of_another_size(layout: Layout, bias: str, tmp_path: Path) -> None:
    path = layout.write(tmp_path, changed(layout, bias, lambda tensor: torch.zeros(len(tensor) + 1)))
    message = refused(path)
    assert "41" in message if bias == "b_enc" else "17" in message


@EVERY
def test_missing_tensors(layout: Layout, tmp_path: Path) -> None:
    unused = {"k", "threshold"} if layout.key == "dict:AutoEncoderTopK" else {"k"}
    for name in set(layout.tensors()) - unused:
        tensors = {key: value for key, value in layout.tensors().items() if key != name}
        assert f"no tensor {name}" in refused(layout.write(tmp_path, tensors))


@EVERY
@pytest.mark.parametrize("ours", ["W_enc", "W_dec", "b_enc"])
def test_numbers_that_are_not_floats(layout: Layout, ours: str, tmp_path: Path) -> None:
    path = layout.write(tmp_path, changed(layout, ours, lambda tensor: tensor.to(torch.int32)))
    assert f"{layout.names[ours]} must hold floating-point numbers" in refused(path)


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_at_load(layout: Layout, bad: float, tmp_path: Path) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt[7] = bad
        return spoilt

    for ours in layout.names:
        if ours not in ("W_enc", "W_dec"):
            path = layout.write(tmp_path, changed(layout, ours, spoil))
            assert f"{layout.names[ours]} holds NaN or infinite numbers" in refused(path)


@EVERY
@pytest.mark.parametrize("matrix", ["W_enc", "W_dec"])
def test_rows_that_are_not_finite_when_they_are_read(layout: Layout, matrix: str, tmp_path: Path) -> None:
    axis = layout.enc if matrix == "W_enc" else layout.dec

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.select(axis, 7)[3] = float("nan")
        return spoilt

    sae = load_sae(layout.write(tmp_path, changed(layout, matrix, spoil)))
    sae.feature(6)
    if matrix == "W_dec" or layout.reads:
        with pytest.raises(ArtefactError, match=f" 7 of {layout.names[matrix]} holds NaN"):
            sae.feature(7)


@EVERY
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_truncated_files(layout: Layout, share: float, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert path.name in refused(path)


class Planted:
    """Unpickled by code that trusts it, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@TORCH
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_that_need_code(layout: Layout, zipped: bool, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    content = {**layout.tensors(), "more": Planted(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refused(path)
    assert not (tmp_path / "ran").exists()
    assert "mkdir" in message
    assert "would run code" in message
    torch.save(torch.nn.Linear(D_IN, D_SAE), path)
    assert "torch.nn.modules.linear.Linear" in refused(path)


@TORCH
def test_torch_files_that_hold_no_dictionary(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    torch.save([torch.zeros(3)], path)
    assert "not a dictionary" in refused(path)


def test_an_archive_that_holds_a_pickle(tmp_path: Path) -> None:
    layout = BY_KEY["gemma-scope"]
    path = layout.write(tmp_path)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in layout.tensors().items()}
    arrays["W_dec"] = np.array([Planted(tmp_path / "ran")], dtype=object)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", stream.getvalue())
    assert "pickle" in refused(path)
    assert not (tmp_path / "ran").exists()


@EVERY
def test_another_model_layer_or_width(layout: Layout, tmp_path: Path) -> None:
    sae = sound(layout, tmp_path)
    assert sae.model is not None
    sae.check_fits(ModelShape(f"copies/{sae.model.split('/')[-1]}", D_IN, 60, tuple(range(60))))
    for shape, why in [
        (ModelShape("org/other", D_IN, 60, tuple(range(60))), "was made for model"),
        (ModelShape(sae.model, D_IN, sae.layer, tuple(range(sae.layer))), f"is for layer {sae.layer}"),
        (ModelShape(sae.model, D_IN * 2, 60, tuple(range(60))), "wide"),
    ]:
        with pytest.raises(ArtefactError, match=why):
            sae.check_fits(shape)
