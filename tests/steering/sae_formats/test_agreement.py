"""Every format's features against its publisher's own code, on raw streams."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_support.layouts import BY_KEY, D_IN, D_SAE, LAYOUTS, Layout, plain_sae
from sae_support.oracles import Oracle, april_update, llama_scope, of_saelens, sparsify, through_loader
from safetensors.torch import save_file

from pilothouse.core.sites import Float32
from pilothouse.steering import Sae, load_sae

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

HOOK = {"model_name": "org/tiny", "hook_name": "blocks.3.hook_resid_post"}


def streams(n: int = 24) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(3)) * 2 + 1


def activation(sae: Sae, feature: int, h: Float32) -> Float32:
    """The activation by the contract of `SaeFeature`, in float32."""
    read = sae.feature(feature)
    assert read.encoder is not None
    x = h @ read.encoder + np.float32(read.bias)
    return np.where(x > np.float32(read.threshold), x, np.float32(0))


def check(sae: Sae, oracle: Oracle) -> None:
    h = streams()
    with torch.no_grad():
        theirs, rows = oracle.encode(h).float().numpy(), oracle.rows().float().numpy()
    assert (sae.why_not_read is None) == (sae.feature(0).encoder is not None)
    if sae.why_not_read is None:
        assert 0.02 < (theirs > 0).mean() < 0.98, "the test would not see a threshold"
    for feature in range(D_SAE):
        np.testing.assert_allclose(sae.feature(feature).decoder, rows[feature], rtol=1e-4, atol=2e-5)
        if sae.why_not_read is None:
            ours = activation(sae, feature, h.numpy())
            np.testing.assert_allclose(ours, theirs[:, feature], rtol=1e-4, atol=5e-5)


PLAIN_TORCH = ("saelens", "sparsify", "dict:AutoEncoderNew")


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.key not in PLAIN_TORCH], ids=lambda one: one.key)
def test_features_are_those_of_saelens_loader(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layout.write(tmp_path)
    sae = load_sae(path)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
    assert sae.format == ("dictionary-learning" if layout.key.startswith("dict:") else layout.key)
    assert (sae.why_not_read is None) == layout.reads
    check(sae, through_loader(monkeypatch, tmp_path, layout.key))


def test_sparsify_features_are_its_authors(tmp_path: Path) -> None:
    layout = BY_KEY["sparsify"]
    sae = load_sae(layout.write(tmp_path))
    assert sae.why_not_read is not None
    assert "topk (k = 4)" in sae.why_not_read
    check(sae, sparsify(layout.tensors()))


def test_the_april_update_subtracts_nothing(tmp_path: Path) -> None:
    layout = BY_KEY["dict:AutoEncoderNew"]
    check(load_sae(layout.write(tmp_path)), april_update(layout.tensors()))


def test_llama_scope_contributions_are_its_authors(tmp_path: Path) -> None:
    layout = BY_KEY["llama-scope"]
    sae, h = load_sae(layout.write(tmp_path)), streams()
    oracle = llama_scope(layout.tensors(), 0.75, D_IN**0.5 / 6.25)
    acts, rows = oracle.encode(h).numpy(), oracle.rows().numpy()
    for feature in range(D_SAE):
        ours = activation(sae, feature, h.numpy())[:, None] * sae.feature(feature).decoder
        np.testing.assert_allclose(ours, acts[:, feature, None] * rows[feature], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("subtracts", [True, False])
def test_llama_scope_subtracts_its_bias_from_the_scaled_stream_if_it_says_so(tmp_path: Path, subtracts: bool) -> None:
    layout, factor = BY_KEY["llama-scope"], D_IN**0.5 / 6.25
    sae = load_sae(layout.write(tmp_path, apply_decoder_bias_to_pre_encoder=subtracts))
    t = layout.tensors()

    def encode(h: torch.Tensor) -> torch.Tensor:
        scaled = h * factor - (t["decoder.bias"] if subtracts else 0)
        pre = scaled @ t["encoder.weight"].T + t["encoder.bias"]
        return torch.where(pre > 0.75 * factor, pre, 0.0)

    check(sae, Oracle(encode, lambda acts: acts @ t["decoder.weight"].T / factor))


SAELENS: dict[str, tuple[Any, Any]] = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
}


def randomise(sae: Any) -> Any:
    plain = plain_sae(D_IN, D_SAE)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(sae.named_parameters())):
            known = plain.get(name)
            torch.manual_seed(i)
            parameter.copy_(torch.randn(parameter.shape) / 2 if known is None else known)
    return sae


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", SAELENS)
def test_saelens_folders(kind: str, subtracts: bool, scaled: bool, tmp_path: Path) -> None:
    sae_class, config_class = SAELENS[kind]
    config = config_class(
        d_in=D_IN,
        d_sae=D_SAE,
        apply_b_dec_to_input=subtracts,
        normalize_activations="expected_average_only_in" if scaled else "none",
        metadata=SAEMetadata(**HOOK),
        **({"k": 5} if kind == "topk" else {}),
    )
    randomise(sae_class(config)).save_model(tmp_path / "sae")
    if scaled:
        (tmp_path / "sae/pilothouse.json").write_text('{"norm_scaling_factor": 0.3}')
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    check(load_sae(tmp_path / "sae"), of_saelens(theirs, 0.3 if scaled else None))


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk", "topk"])
def test_saelens_inference_form_of_what_it_trains(kind: str, tmp_path: Path) -> None:
    sae_class, config_class = sae_lens.registry.get_sae_training_class(kind)
    sizes: dict[str, Any] = {"matryoshka_widths": [8, 24, D_SAE]} if kind.startswith("matryoshka") else {}
    if "topk" in kind:
        sizes |= {"k": 5}
    sae = randomise(sae_class(config_class(d_in=D_IN, d_sae=D_SAE, metadata=SAEMetadata(**HOOK), **sizes)))
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(1.1)
    sae.save_inference_model(tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert (loaded.why_not_read is None) == (kind != "topk")
    check(loaded, of_saelens(sae_lens.SAE.load_from_disk(tmp_path / "sae")))


@pytest.mark.parametrize("key", ["saelens", "gemma-scope-2", "llama-scope"])
def test_bfloat16_is_read_as_float32(key: str, tmp_path: Path) -> None:
    layout = BY_KEY[key]
    half = {name: tensor.bfloat16() for name, tensor in layout.tensors().items()}
    sae = load_sae(layout.write(tmp_path, half))
    kept = load_sae(layout.write(tmp_path / "again", {name: tensor.float() for name, tensor in half.items()}))
    for feature in (0, 7, D_SAE - 1):
        ours, theirs = sae.feature(feature), kept.feature(feature)
        assert ours.encoder is not None
        assert theirs.encoder is not None
        assert ours.encoder.dtype == ours.decoder.dtype == np.float32
        np.testing.assert_array_equal(ours.encoder, theirs.encoder)
        np.testing.assert_array_equal(ours.decoder, theirs.decoder)
        assert (ours.bias, ours.threshold) == (theirs.bias, theirs.threshold)


def test_a_square_matrix_lies_as_the_format_says(tmp_path: Path) -> None:
    for layout in (BY_KEY["gemma-scope"], BY_KEY["goodfire"], BY_KEY["qwen-scope"]):
        plain = plain_sae(D_IN, D_IN)
        sae = load_sae(layout.write(tmp_path / layout.key, layout.tensors(D_IN, D_IN)))
        np.testing.assert_array_equal(sae.decoder_row(3), plain["W_dec"][3].numpy())
        encoder = sae.feature(3).encoder
        if encoder is not None:
            np.testing.assert_array_equal(encoder, plain["W_enc"][:, 3].numpy())


def test_compressed_archives_and_old_torch_files_are_read_too(tmp_path: Path) -> None:
    gemma, goodfire = BY_KEY["gemma-scope"], BY_KEY["goodfire"]
    path = gemma.write(tmp_path)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in gemma.tensors().items()}
    np.savez_compressed(path, **arrays)
    np.testing.assert_array_equal(load_sae(path).decoder_row(9), plain_sae(D_IN, D_SAE)["W_dec"][9].numpy())
    path = goodfire.write(tmp_path)
    torch.save(goodfire.tensors(), path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(load_sae(path).decoder_row(9), plain_sae(D_IN, D_SAE)["W_dec"][9].numpy())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.key)
def test_the_largest_activation_lies_beside_the_weights(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    save_file({"max_act": torch.arange(D_SAE, dtype=torch.float32)}, folder / "feature_stats.safetensors")
    sae = load_sae(path)
    assert [sae.feature(feature).max_act for feature in (0, 1, 7)] == [None, 1.0, 7.0]


def test_a_factor_that_is_not_in_the_weights_changes_the_digest(tmp_path: Path) -> None:
    layout = BY_KEY["saelens"]
    folder = layout.write(tmp_path, normalize_activations="expected_average_only_in", norm_scaling_factor=0.5).parent
    digests = {load_sae(folder).digest}
    layout.write(tmp_path, normalize_activations="expected_average_only_in", norm_scaling_factor=0.25)
    digests.add(load_sae(folder).digest)
    layout.write(tmp_path)
    digests.add(load_sae(folder).digest)
    assert len(digests) == 3
