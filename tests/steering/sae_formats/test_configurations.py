"""Configurations by which an SAE cannot be steered, or steered but not read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_support.layouts import BY_KEY, D_IN, LAYOUTS

from pilothouse.core.errors import ArtefactError
from pilothouse.steering import load_sae


def refused(path: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        load_sae(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


CONFIGURED: list[tuple[str, dict[str, Any], str]] = [
    ("saelens", {"normalize_activations": "expected_average_only_in"}, "norm_scaling_factor"),
    ("saelens", {"normalize_activations": "layer_norm"}, "layer_norm"),
    ("saelens", {"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
    ("saelens", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
    ("gemma-scope-2", {"hf_hook_point_in": "model.layers.17.self_attn.o_proj.input"}, "o_proj"),
    ("gemma-scope-2", {"hf_hook_point_in": "model.layers.18.output"}, "contradicts the path"),
    ("gemma-scope-2", {"hf_hook_point_out": "model.layers.18.output"}, "transcoder"),
    ("gemma-scope-2", {"architecture": "relu"}, "architecture 'relu'"),
    ("gemma-scope-2", {"type": "crosscoder"}, "crosscoder"),
    ("llama-scope", {"dataset_average_activation_norm": None}, "norm_scaling_factor"),
    ("llama-scope", {"dataset_average_activation_norm": {"in": 0}}, "positive number"),
    ("llama-scope", {"dataset_average_activation_norm": {"in": 1.0, "out": 2.0}}, "differs between in and out"),
    ("llama-scope", {"norm_activation": "token-wise"}, "token-wise"),
    ("llama-scope", {"jump_relu_threshold": None}, "jump_relu_threshold"),
    ("llama-scope", {"hook_point_in": "blocks.15.hook_mlp_out", "hook_point_out": None}, "hook_mlp_out"),
    ("llama-scope", {"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
    ("llama-scope", {"hook_point_in": "blocks.9.hook_resid_post", "hook_point_out": None}, "contradicts the path"),
    ("sparsify", {"transcode": True}, "transcoder"),
    ("sparsify", {"skip_connection": True}, "skip_connection"),
    ("sparsify", {"d_in": None}, "d_in"),
    ("sparsify", {"num_latents": 0}, "512"),
    ("dict:AutoEncoder", {"trainer": None}, "trainer"),
    ("dict:AutoEncoder", {"trainer": {"dict_class": "CrossCoder"}}, "CrossCoder"),
]


@pytest.mark.parametrize(("key", "config", "why"), CONFIGURED, ids=lambda value: str(value)[:40])
def test_configurations_that_cannot_steer(key: str, config: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert why in refused(BY_KEY[key].write(tmp_path, **config))


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ({"submodule_name": "mlp_out_layer_3"}, "mlp_out_layer_3"),
        ({"submodule_name": "attention_out_layer_3"}, "attention_out_layer_3"),
        ({"layer": 4}, "contradicts"),
        ({"layer": [3, 4]}, "one place"),
        ({"activation_dim": D_IN + 1}, "17"),
    ],
)
def test_dictionaries_of_another_place(trainer: dict[str, Any], why: str, tmp_path: Path) -> None:
    layout = BY_KEY["dict:AutoEncoder"]
    assert layout.config is not None
    content = layout.config[1]
    assert why in refused(layout.write(tmp_path, trainer={**content["trainer"], **trainer}))


@pytest.mark.parametrize(
    ("key", "config", "why"),
    [
        ("saelens", {"architecture": "batchtopk"}, "training checkpoint"),
        ("saelens", {"architecture": "matching_pursuit"}, "depend on all features"),
        ("saelens", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "topk (k = 3)"),
        ("saelens", {"architecture": "standard", "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ("llama-scope", {"act_fn": "topk"}, "topk"),
        ("llama-scope", {"use_glu_encoder": True}, "sigmoid"),
    ],
)
def test_what_cannot_be_read_can_still_be_added(key: str, config: dict[str, Any], why: str, tmp_path: Path) -> None:
    layout = BY_KEY[key]
    sae = load_sae(layout.write(tmp_path, **config))
    assert sae.why_not_read is not None
    assert why in sae.why_not_read
    feature = sae.feature(3)
    assert feature.encoder is None
    np.testing.assert_array_equal(feature.decoder, load_sae(layout.write(tmp_path / "plain")).feature(3).decoder)


def test_a_threshold_that_was_never_fitted(tmp_path: Path) -> None:
    layout = BY_KEY["dict:BatchTopKSAE"]
    sae = load_sae(layout.write(tmp_path, {**layout.tensors(), "threshold": torch.tensor(-1.0)}))
    assert sae.why_not_read is not None
    assert "never fitted" in sae.why_not_read


def test_transcoders_are_known_by_their_tensors(tmp_path: Path) -> None:
    for key, tensor in [("gemma-scope-2", "affine_skip_connection"), ("sparsify", "W_skip")]:
        layout = BY_KEY[key]
        assert tensor in refused(layout.write(tmp_path, {**layout.tensors(), tensor: torch.zeros(D_IN, D_IN)}))


def test_configurations_that_are_no_json_objects(tmp_path: Path) -> None:
    for layout in (one for one in LAYOUTS if one.config is not None and one.key != "gemma-scope-2"):
        path = layout.write(tmp_path)
        assert layout.config is not None
        config = tmp_path / layout.config[0]
        for content in ("[]", "", '{"d_in": NaN}'):
            config.write_text(content)
            assert refused(path)
        config.unlink()
        assert config.name in refused(path)
        config.write_text(json.dumps({}))
        assert refused(path)
