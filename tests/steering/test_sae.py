import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pilothouse.core.errors import ArtefactError, BadRequest
from pilothouse.core.sites import ModelShape
from pilothouse.steering import load_sae, load_saes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

D_IN, D_SAE = 6, 10
HOOK = {"model_name": "org/tiny", "hook_name": "blocks.3.hook_resid_post"}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 3}),
}
Make = Callable[..., tuple[Path, Any]]


@pytest.fixture
def make_sae(tmp_path: Path) -> Make:
    """An SAE folder as SAELens itself writes it, and the SAE that it wrote."""

    def make(
        kind: str = "standard", name: str = "sae", metadata: dict[str, Any] = HOOK, **config: Any
    ) -> tuple[Path, Any]:
        sae_class, config_class, defaults = KINDS[kind]
        torch.manual_seed(7)
        cfg = config_class(
            d_in=D_IN, d_sae=D_SAE, metadata=SAEMetadata(**metadata), **{**defaults, **config}
        )  # fmt: skip
        sae = sae_class(cfg)
        with torch.no_grad():
            sae.W_dec.copy_(torch.randn(D_SAE, D_IN))
        sae.save_model(tmp_path / name)
        return tmp_path / name, sae

    return make


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of cfg.json; None removes one."""
    cfg = {**json.loads((folder / "cfg.json").read_text()), **changes}
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value is not None}))


def edit_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    weights = {**load_file(folder / "sae_weights.safetensors"), **tensors}
    save_file(
        {key: value.contiguous() for key, value in weights.items() if value is not None},
        folder / "sae_weights.safetensors",
    )


def added_by(sae: Any, feature: int, activation: float = 1.0) -> Any:
    """What SAELens's own decoder adds to its output when the feature is at `activation`."""
    acts = torch.zeros(2, D_SAE)
    acts[1, feature] = activation
    with torch.no_grad():
        silent, active = sae.decode(acts)
    return (active - silent).float().numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoder_rows_are_saelens_own(make_sae: Make, kind: str, dtype: str) -> None:
    folder, written = make_sae(kind, dtype=dtype)
    sae = load_sae(folder)
    assert (sae.name, sae.layer, sae.d_in, sae.d_sae) == ("sae", 3, D_IN, D_SAE)
    assert (sae.architecture, sae.model) == (kind, "org/tiny")
    assert sae.card["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    for feature in range(D_SAE):
        row = sae.decoder_row(feature)
        assert row.dtype == np.float32
        assert row.tolist() == written.W_dec[feature].float().tolist()


@pytest.mark.parametrize("feature", [-1, D_SAE, 10**9])
def test_a_feature_that_is_not_there_is_a_bad_request(make_sae: Make, feature: int) -> None:
    sae = load_sae(make_sae()[0])
    with pytest.raises(BadRequest, match=f"0 to {D_SAE - 1}") as caught:
        sae.decoder_row(feature)
    assert caught.value.param == "feature"
    with pytest.raises(BadRequest):
        sae.max_act(feature)


def test_rows_are_read_once_and_cannot_be_changed(make_sae: Make) -> None:
    sae = load_sae(make_sae()[0])
    assert sae.decoder_row(2) is sae.decoder_row(2)
    with pytest.raises(ValueError, match="read-only"):
        sae.decoder_row(2)[0] = 0.0


def test_the_digest_is_that_of_the_weights_file(make_sae: Make) -> None:
    folder, _ = make_sae()
    expected = hashlib.sha256((folder / "sae_weights.safetensors").read_bytes()).hexdigest()
    assert load_sae(folder, name="other").digest == f"sha256:{expected}"


@pytest.mark.parametrize(
    ("metadata", "layer"),
    [
        ({"hook_name": "blocks.0.hook_resid_post"}, 0),
        ({"hook_name": "blocks.12.hook_resid_pre"}, 11),
        ({"hf_hook_name": "model.layers.7"}, 7),
        ({"hf_hook_name": "model.layers.7.output"}, 7),
        ({"hf_hook_name": "transformer.h.7"}, 7),
        ({"hook_name": "blocks.7.hook_resid_post", "hf_hook_name": "model.layers.7.output"}, 7),
    ],
)
def test_the_layer_comes_from_the_hook(make_sae: Make, metadata: dict[str, Any], layer: int) -> None:
    sae = load_sae(make_sae(metadata=metadata)[0])
    assert sae.layer == layer
    assert sae.model is None


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"hook_name": "blocks.3.hook_mlp_out"}, "hook_mlp_out"),
        ({"hook_name": "blocks.3.attn.hook_z"}, "hook_z"),
        ({"hook_name": "blocks.3.hook_attn_out"}, "hook_attn_out"),
        ({"hook_name": "blocks.3.hook_resid_mid"}, "hook_resid_mid"),
        ({"hook_name": "blocks.3.hook_resid_post", "hook_head_index": 2}, "attention heads"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "embedding"),
        ({"hf_hook_name": "model.layers.3.mlp"}, "not the output of a decoder block"),
        ({"hf_hook_name": "model.layers.3.input"}, "not the output of a decoder block"),
        ({"hook_name": "blocks.3.hook_resid_post", "hf_hook_name": "model.layers.4"}, "different layers"),
        ({"model_name": "org/tiny"}, "no hook_name"),
        ({**HOOK, "model_name": 3}, "model_name"),
    ],
)
def test_an_sae_that_is_not_of_the_residual_stream_is_refused(
    make_sae: Make, metadata: dict[str, Any], why: str
) -> None:
    folder, _ = make_sae(metadata=metadata)
    with pytest.raises(ArtefactError, match=why):
        load_sae(folder)


LEGACY: dict[str, Any] = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "torch.float32",
    "device": "cpu",
    "model_name": "gpt2-small",
    "hook_point": "blocks.4.hook_resid_pre",
    "hook_layer": 4,
    "hook_point_head_index": None,
    "activation_fn_str": "relu",
    "normalize_activations": False,
}


def test_flat_configurations_from_before_version_6(make_sae: Make) -> None:
    folder, _ = make_sae()
    (folder / "cfg.json").write_text(json.dumps(LEGACY))
    sae = load_sae(folder)
    assert (sae.layer, sae.model, sae.architecture) == (3, "gpt2-small", "standard")
    oracle = sae_lens.SAE.load_from_disk(folder)
    assert oracle.cfg.metadata.hook_name == "blocks.4.hook_resid_pre"
    np.testing.assert_array_equal(sae.decoder_row(5), oracle.W_dec[5].detach().numpy())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hook_layer": 5}, "hook_layer"),
        ({"hook_point": "blocks.4.attn.hook_z"}, "hook_z"),
        ({"hook_point_head_index": 3}, "attention heads"),
        ({"normalize_activations": True}, "norm_scaling_factor"),
        ({"architecture": "transcoder"}, "transcoder"),
        ({"d_in": "6"}, "d_in"),
        ({"d_sae": None}, "d_sae"),
        ({"d_sae": True}, "d_sae"),
        ({"metadata": [1]}, "metadata"),
    ],
)
def test_flat_configurations_that_cannot_steer_are_refused(make_sae: Make, changes: dict[str, Any], why: str) -> None:
    folder, _ = make_sae()
    (folder / "cfg.json").write_text(json.dumps({**LEGACY, **changes}))
    with pytest.raises(ArtefactError, match=why):
        load_sae(folder)


@pytest.mark.parametrize("where", ["configuration", "metadata", "scaler"])
def test_a_known_scaling_is_folded_in_as_saelens_folds_it(make_sae: Make, where: str) -> None:
    folder, written = make_sae(normalize_activations="expected_average_only_in")
    if where == "scaler":
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.25, "has_whitening": False}))
    elif where == "metadata":
        edit(folder, metadata={**HOOK, "norm_scaling_factor": 0.25})
    else:
        edit(folder, norm_scaling_factor=0.25)
    written.fold_activation_norm_scaling_factor(0.25)
    sae = load_sae(folder)
    for feature in range(D_SAE):
        np.testing.assert_allclose(sae.decoder_row(feature), added_by(written, feature), rtol=1e-6)


@pytest.mark.parametrize("factor", [None, 0, -1.0, "0.5", True])
def test_a_scaling_whose_factor_is_unknown_is_refused(make_sae: Make, factor: Any) -> None:
    folder, _ = make_sae(normalize_activations="expected_average_only_in")
    edit(folder, norm_scaling_factor=factor)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None}))
    with pytest.raises(ArtefactError, match="factor"):
        load_sae(folder)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale", "covariance_whitening"])
def test_scalings_without_a_fixed_factor_are_refused(make_sae: Make, normalize: str) -> None:
    folder, _ = make_sae(normalize_activations=normalize)
    with pytest.raises(ArtefactError, match=normalize):
        load_sae(folder)


def test_a_fine_tuned_factor_is_refused_unless_it_is_one(make_sae: Make) -> None:
    folder, _ = make_sae()
    edit_weights(folder, scaling_factor=torch.ones(D_SAE))
    load_sae(folder)
    edit_weights(folder, scaling_factor=torch.linspace(0.5, 2, D_SAE))
    with pytest.raises(ArtefactError, match="scaling_factor"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("decoder", "why"),
    [
        (torch.ones(D_SAE, D_IN + 1), r"W_dec is \[10, 7\]"),
        (torch.ones(D_IN, D_SAE), "transposed"),
        (torch.ones(D_SAE * D_IN), "W_dec is"),
        (torch.ones(D_SAE, D_IN, dtype=torch.int32), "I32"),
        (None, "no tensor W_dec"),
    ],
)
def test_a_decoder_of_another_shape_is_refused(make_sae: Make, decoder: torch.Tensor | None, why: str) -> None:
    folder, _ = make_sae()
    edit_weights(folder, W_dec=decoder)
    with pytest.raises(ArtefactError, match=why):
        load_sae(folder)


def test_a_row_that_is_not_finite_is_refused_when_read(make_sae: Make) -> None:
    folder, written = make_sae()
    decoder = written.W_dec.detach().clone()
    decoder[4, 1] = float("nan")
    edit_weights(folder, W_dec=decoder)
    sae = load_sae(folder)
    sae.decoder_row(3)
    with pytest.raises(ArtefactError, match="row 4"):
        sae.decoder_row(4)


@pytest.mark.parametrize("file", ["sae_weights.safetensors", "feature_stats.safetensors", "max_acts.safetensors"])
def test_max_act_is_found_in_any_of_its_places(make_sae: Make, file: str) -> None:
    folder, _ = make_sae()
    largest = torch.arange(D_SAE, dtype=torch.float32) / 2
    if file == "sae_weights.safetensors":
        edit_weights(folder, max_act=largest)
    else:
        save_file({"max_act": largest}, folder / file)
    sae = load_sae(folder)
    assert [sae.max_act(feature) for feature in range(1, D_SAE)] == [feature / 2 for feature in range(1, D_SAE)]
    # A strength of so many times nothing would steer nothing without a word.
    assert sae.max_act(0) is None


def test_firing_rates_are_not_activations(make_sae: Make) -> None:
    folder, _ = make_sae()
    save_file({"sparsity": torch.ones(D_SAE), "max_act": torch.ones(D_SAE)}, folder / "sparsity.safetensors")
    assert load_sae(folder).max_act(0) is None


@pytest.mark.parametrize(
    "values", [torch.ones(D_SAE - 1), torch.full((D_SAE,), float("nan")), torch.full((D_SAE,), -1.0)]
)
def test_bad_statistics_are_refused(make_sae: Make, values: torch.Tensor) -> None:
    folder, _ = make_sae()
    save_file({"max_act": values}, folder / "max_acts.safetensors")
    with pytest.raises(ArtefactError, match="max_act"):
        load_sae(folder)


@pytest.mark.parametrize("rescale", [False, True])
def test_max_act_times_the_row_is_what_saelens_adds(make_sae: Make, rescale: bool) -> None:
    folder, written = make_sae("topk", rescale_acts_by_decoder_norm=rescale)
    save_file({"max_act": torch.full((D_SAE,), 3.5)}, folder / "feature_stats.safetensors")
    sae = load_sae(folder)
    for feature in range(D_SAE):
        largest = sae.max_act(feature)
        assert largest is not None
        np.testing.assert_allclose(largest * sae.decoder_row(feature), added_by(written, feature, 3.5), rtol=1e-5)


def test_an_sae_fits_its_own_model_only(make_sae: Make) -> None:
    sae = load_sae(make_sae()[0])
    sae.check_fits(ModelShape("/models/tiny", D_IN, 6, (1, 3)))
    for shape, why in [
        (ModelShape("org/other", D_IN, 6, (3,)), "other"),
        (ModelShape("org/tiny", D_IN + 1, 6, (3,)), "wide"),
        (ModelShape("org/tiny", D_IN, 3, (0, 1, 2)), "layers are 0 to 2"),
        (ModelShape("org/tiny", D_IN, 6, (2,)), "no site"),
    ]:
        with pytest.raises(ArtefactError, match=why):
            sae.check_fits(shape)


def test_a_folder_of_saes_or_one_alone(make_sae: Make, tmp_path: Path) -> None:
    one, _ = make_sae(name="one")
    make_sae("topk", name="two")
    (tmp_path / "notes").mkdir()
    assert {name: sae.architecture for name, sae in load_saes(tmp_path).items()} == {"one": "standard", "two": "topk"}
    assert list(load_saes(one)) == ["one"]
    with pytest.raises(ArtefactError, match="absent"):
        load_saes(tmp_path / "absent")


def test_names_are_checked(make_sae: Make) -> None:
    folder, _ = make_sae(name="a+b")
    assert load_sae(folder, name="plain").name == "plain"
    with pytest.raises(ArtefactError, match="cannot be a name"):
        load_sae(folder)


@pytest.mark.parametrize("value", ['"\\ud800"', "NaN", "1e999"])
def test_a_configuration_that_could_not_be_shown_to_clients_is_refused(make_sae: Make, value: str) -> None:
    folder, _ = make_sae()
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text('{"note": ' + value + ", " + text.removeprefix("{"))
    with pytest.raises(ArtefactError, match="JSON"):
        load_sae(folder)


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_half_a_folder_is_refused(make_sae: Make, missing: str) -> None:
    folder, _ = make_sae()
    (folder / missing).unlink()
    with pytest.raises(ArtefactError, match=missing):
        load_sae(folder)


@pytest.mark.parametrize("broken", ["cfg.json", "sae_weights.safetensors", "max_acts.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff" * 40, b"null"], ids=["empty", "list", "bytes", "null"])
def test_broken_files_end_in_an_artefact_error(make_sae: Make, broken: str, content: bytes) -> None:
    folder, _ = make_sae()
    (folder / broken).write_bytes(content)
    with pytest.raises(ArtefactError, match="sae"):
        load_sae(folder)
    shutil.rmtree(folder)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(make_sae: Make) -> None:
    folder, written = make_sae()
    sae = load_sae(folder)
    other = folder / "other"
    other.write_bytes((folder / "sae_weights.safetensors").read_bytes()[:-4] + b"\0\0\0\0")
    other.replace(folder / "sae_weights.safetensors")
    with pytest.raises(ArtefactError, match="was changed while it was read"):
        _ = sae.digest
    # Its rows are those of the file that was opened.
    for feature in range(D_SAE):
        assert sae.decoder_row(feature).tolist() == written.W_dec[feature].tolist()
