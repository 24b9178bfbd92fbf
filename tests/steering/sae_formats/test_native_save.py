"""Every format written in the native form: the numbers in the new file against the old file's own matrices."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_support.layouts import BY_KEY, D_IN, D_SAE, LAYOUTS, SAELENS_CONFIG, Layout, plain_sae
from sae_support.native import native_tensors, write_native
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering import Sae, load_sae, sae_from_upload, save_sae

EVERY = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.key)
LLAMA_FACTOR = D_IN**0.5 / 6.25
SUBTRACT = ("saelens", "dict:AutoEncoder", "dict:GatedAutoEncoder", "dict:BatchTopKSAE", "dict:MatryoshkaBatchTopKSAE")
RELU = ("goodfire", "dict:AutoEncoder", "dict:AutoEncoderNew")
FITTED = ("dict:BatchTopKSAE", "dict:MatryoshkaBatchTopKSAE")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are gone through seven at a time, and five at last."""
    monkeypatch.setattr("pilothouse.steering.sae_rows.BLOCK_NUMBERS", 7 * D_IN)


def streams() -> Float32:
    return np.random.default_rng(5).standard_normal((32, D_IN)).astype(np.float32) * 2 + 1


def activations(layout: Layout, h: Float32) -> Any:
    """Activations [n, d_sae] by the publisher's definition, in float64 from the matrices that the file was made of."""
    plain = {name: tensor.double().numpy() for name, tensor in plain_sae(D_IN, D_SAE).items()}
    x = h.astype(np.float64) * (LLAMA_FACTOR if layout.key == "llama-scope" else 1)
    x = (x - plain["b_dec"] if layout.key in SUBTRACT else x) @ plain["W_enc"]
    if layout.key == "dict:GatedAutoEncoder":
        gate = x + layout.more["gate_bias"].numpy() > 0
        return gate * np.maximum(np.exp(layout.more["r_mag"].numpy()) * x + plain["b_enc"], 0)
    x = x + plain["b_enc"]
    threshold = {"llama-scope": 0.75 * LLAMA_FACTOR, **dict.fromkeys(RELU, 0.0), **dict.fromkeys(FITTED, 0.6)}
    return np.where(x > threshold.get(layout.key, plain["threshold"]), x, 0)


def same_features(ours: Sae, theirs: Sae) -> None:
    assert (ours.layer, ours.model, ours.d_in, ours.d_sae) == (theirs.layer, theirs.model, theirs.d_in, theirs.d_sae)
    assert (ours.architecture, ours.activation) == (theirs.architecture, theirs.activation)
    assert (ours.format, ours.why_not_read) == ("pilothouse", theirs.why_not_read)
    for i in range(theirs.d_sae):
        one, other = ours.feature(i), theirs.feature(i)
        np.testing.assert_array_equal(one.decoder, other.decoder)
        assert one.max_act == (None if other.max_act is None else pytest.approx(other.max_act, rel=1e-6))
        assert (one.encoder is None) == (other.encoder is None)
        if one.encoder is not None and other.encoder is not None:
            np.testing.assert_array_equal(one.encoder, other.encoder)
            assert one.bias == pytest.approx(other.bias, rel=1e-6)
            assert one.threshold == other.threshold


@EVERY
def test_every_format_becomes_the_native_form(layout: Layout, tmp_path: Path) -> None:
    theirs, path = load_sae(layout.write(tmp_path)), tmp_path / "new/ours.safetensors"
    save_sae(theirs, path)
    for ours in (load_sae(path), sae_from_upload(path)):
        assert ours.name == theirs.name
        same_features(ours, theirs)
    stored = load_file(path)
    rows = plain_sae(D_IN, D_SAE)["W_dec"].numpy() / (LLAMA_FACTOR if layout.key == "llama-scope" else 1)
    np.testing.assert_allclose(stored["W_dec"], rows, rtol=1e-6)
    assert set(stored) == ({"W_dec", "W_enc", "b_enc", "threshold"} if layout.reads else {"W_dec"})
    if layout.reads:
        h = streams()
        wanted, x = activations(layout, h), h @ stored["W_enc"].T + stored["b_enc"]
        assert 0.02 < (wanted > 0).mean() < 0.98, "the test would not see a threshold"
        np.testing.assert_allclose(np.where(x > stored["threshold"], x, 0), wanted, rtol=1e-4, atol=5e-5)


@EVERY
def test_largest_activations_are_kept(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    largest = torch.arange(D_SAE) / 4
    save_file({"max_act": largest}, folder / "feature_stats.safetensors")
    save_sae(theirs := load_sae(path), tmp_path / "ours.safetensors")
    assert load_file(tmp_path / "ours.safetensors")["max_act"].tolist() == largest.tolist()
    same_features(load_sae(tmp_path / "ours.safetensors"), theirs)


def saelens(root: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """A SAELens folder of other tensors, with the largest activation 0, 1, 2, ... of its features."""
    layout = BY_KEY["saelens"]
    tensors = {**tensors, "max_act": torch.arange(D_SAE, dtype=torch.float32)}
    return layout.write(root, tensors, **{**SAELENS_CONFIG, **config}).parent


def test_scaled_and_gated(tmp_path: Path) -> None:
    plain = plain_sae(D_IN, D_SAE)
    gates = {"b_gate": torch.linspace(2, -2, D_SAE), "b_mag": plain["b_enc"], "r_mag": torch.linspace(-1, 1, D_SAE)}
    kept = {name: plain[name].contiguous() for name in ("W_enc", "W_dec", "b_dec")}
    scaled = {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.3}
    theirs = load_sae(saelens(tmp_path, {**kept, **gates}, architecture="gated", **scaled))
    save_sae(theirs, tmp_path / "ours.safetensors", name="folded")
    ours = load_sae(tmp_path / "ours.safetensors")
    assert (ours.name, ours.activation) == ("folded", "gated relu")
    same_features(ours, theirs)
    stored, h = load_file(tmp_path / "ours.safetensors"), streams()
    p = (0.3 * h - plain["b_dec"].numpy()) @ plain["W_enc"].numpy()
    wanted = (p + gates["b_gate"].numpy() > 0) * np.maximum(
        np.exp(gates["r_mag"].numpy()) * p + plain["b_enc"].numpy(), 0
    )
    x = h @ stored["W_enc"].T + stored["b_enc"]
    assert 0.02 < (wanted > 0).mean() < 0.98
    np.testing.assert_allclose(np.where(x > stored["threshold"], x, 0), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stored["W_dec"], plain["W_dec"].numpy() / 0.3, rtol=1e-6)


def test_activations_over_the_rows_norm_become_multiples_of_the_row(tmp_path: Path) -> None:
    plain = plain_sae(D_IN, D_SAE)
    kept = {name: plain[name].contiguous() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    told = {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}
    theirs = load_sae(saelens(tmp_path, kept, **told))
    save_sae(theirs, tmp_path / "ours.safetensors")
    ours = load_sae(tmp_path / "ours.safetensors")
    same_features(ours, theirs)
    assert ours.why_not_read is not None
    assert "topk (k = 4)" in ours.why_not_read
    norms = plain["W_dec"].norm(dim=1).numpy()
    np.testing.assert_allclose(load_file(tmp_path / "ours.safetensors")["max_act"], np.arange(D_SAE) / norms, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrices_may_be_halves(dtype: Any, tmp_path: Path) -> None:
    save_sae(load_sae(write_native(tmp_path / "a.safetensors")), tmp_path / "b.safetensors", dtype=dtype)
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in ("W_dec", "W_enc", "b_enc", "threshold", "max_act")}
    half = getattr(torch, dtype)
    for name, tensor in native_tensors().items():
        matrix = name.startswith("W_")
        assert stored[name].dtype == (half if matrix else torch.float32)
        assert torch.equal(stored[name], tensor.to(half) if matrix else tensor)
    assert sae_from_upload(tmp_path / "b.safetensors").feature(3).decoder.dtype == np.float32


def test_the_card_says_what_it_was_made_of(tmp_path: Path) -> None:
    theirs = load_sae(BY_KEY["gemma-scope-2"].write(tmp_path))
    save_sae(theirs, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["pilothouse"])
    assert (card["format"], card["kind"], card["model"], card["layer"]) == (1, "sae", "google/gemma-3-4b-pt", 17)
    source = {"format": "gemma-scope-2", "file": "params.safetensors", "digest": theirs.digest}
    assert card["config"] == {"source": source, "card": dict(theirs.card)}
    save_sae(load_sae(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", name="again")
    again = load_sae(tmp_path / "b.safetensors")
    assert (again.name, again.card["config"]) == ("again", card["config"])


@pytest.mark.parametrize("matrix", ["W_enc", "W_dec"])
def test_nothing_is_written_of_an_sae_that_is_not_finite(matrix: str, tmp_path: Path) -> None:
    stored = native_tensors()
    stored[matrix][29, 3] = float("nan")
    sae = load_sae(write_native(tmp_path / "a.safetensors", stored))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b.safetensors").write_bytes(b"before")
    with pytest.raises(ArtefactError, match=f"row 29 of {matrix} holds NaN"):
        save_sae(sae, tmp_path / "out/b.safetensors")
    assert os.listdir(tmp_path / "out") == ["b.safetensors"]
    assert (tmp_path / "out/b.safetensors").read_bytes() == b"before"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    stored = native_tensors()
    stored["W_dec"][29, 3] = 1e5
    sae, out = load_sae(write_native(tmp_path / "a.safetensors", stored)), tmp_path / "out/b.safetensors"
    with pytest.raises(ArtefactError, match="row 29 of W_dec holds numbers too large for float16"):
        save_sae(sae, out, dtype="float16")
    with pytest.raises(ArtefactError, match="cannot be a name"):
        save_sae(sae, out, name="a/b")
    with pytest.raises(ArtefactError, match="max_act must be finite and not negative"):
        save_sae(replace(sae, max_acts=-np.ones(D_SAE, np.float32)), out)
    assert list(tmp_path.glob("out/*")) == list(tmp_path.glob("out/.*")) == []
    with pytest.raises(ArtefactError, match="cannot be written"):
        save_sae(sae, tmp_path / "a.safetensors" / "b.safetensors")
    save_sae(sae, out, dtype="bfloat16")


def test_a_file_may_take_the_place_of_the_one_it_was_read_from(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.safetensors")
    sae = load_sae(path)
    save_sae(sae, path, name="renamed")
    same_features(load_sae(path), sae)
    assert load_sae(path).name == "renamed"
