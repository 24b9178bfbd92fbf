"""Small files of every published layout, each made of one random SAE in the stream's plain orientation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D_IN, D_SAE = 16, 40
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """One format. `names` gives its name for each of W_enc, W_dec, b_enc, b_dec and threshold where it has one.

    enc, dec: the dimension of the stored matrix that counts features. `config`: path below the root, and content.
    """

    key: str
    weights: str
    names: Mapping[str, str]
    enc: int
    dec: int
    config: tuple[str, dict[str, Any]] | None = None
    more: Tensors = field(default_factory=dict)
    others: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    reads: bool = True

    def tensors(self, d_in: int = D_IN, d_sae: int = D_SAE) -> Tensors:
        """The tensors of a sound file."""
        plain = plain_sae(d_in, d_sae)
        stored = {
            "W_enc": plain["W_enc"] if self.enc else plain["W_enc"].T,
            "W_dec": plain["W_dec"].T if self.dec else plain["W_dec"],
        }
        named = {name: {**plain, **stored}[ours] for ours, name in self.names.items()}
        return {name: tensor.contiguous() for name, tensor in {**named, **self.more}.items()}

    def write(self, root: Path, tensors: Tensors | None = None, **config: Any) -> Path:
        """Write the files; returns the weights. Keys of `config` are changed, or left out where None."""
        path = root / self.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, self.tensors() if tensors is None else tensors)
        files = dict(self.others)
        if self.config is not None:
            name, content = self.config
            files[name] = {key: value for key, value in {**content, **config}.items() if value is not None}
        for name, content in files.items():
            (root / name).write_text(json.dumps(content))
        return path


def plain_sae(d_in: int, d_sae: int) -> Tensors:
    """W_enc [d_in, d_sae], W_dec [d_sae, d_in], and biases large enough that leaving one out shows."""
    torch.manual_seed(11)
    return {
        "W_enc": torch.randn(d_in, d_sae) / 4,
        "W_dec": torch.randn(d_sae, d_in),
        "b_enc": torch.randn(d_sae),
        "b_dec": torch.randn(d_in) * 3,
        "threshold": torch.rand(d_sae) * 2,
    }


def save(path: Path, tensors: Tensors) -> None:
    """Write tensors as the suffix says."""
    match path.suffix:
        case ".npz":
            arrays: Mapping[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(path, **arrays)
        case ".safetensors":
            save_file(tensors, path)
        case _:
            torch.save(tensors, path)


PLAIN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
JUMPRELU = {**PLAIN, "threshold": "threshold"}
LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "b_dec"}
GATES = {"r_mag": torch.linspace(-0.5, 0.5, D_SAE), "b_gate": torch.linspace(1, -1, D_SAE)}

SAELENS_CONFIG: dict[str, Any] = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "architecture": "jumprelu",
    "normalize_activations": "none",
    "apply_b_dec_to_input": True,
    "metadata": {"sae_lens_version": "6.0.0", "model_name": "org/tiny", "hook_name": "blocks.3.hook_resid_post"},
}
TRAINER: dict[str, Any] = {
    "activation_dim": D_IN,
    "dict_size": D_SAE,
    "layer": 3,
    "lm_name": "org/tiny",
    "submodule_name": "resid_post_layer_3",
}
GEMMA = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
GEMMA2 = "google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium"
LLAMA = "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x"
GOODFIRE = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
QWEN = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"


def dictionary(name: str, names: Mapping[str, str], enc: int, more: Tensors | None = None, **trainer: Any) -> Layout:
    """A dictionary_learning folder of the given `dict_class`."""
    config = {"trainer": {**TRAINER, "dict_class": name, **trainer}, "buffer": {"ctx_len": 128}}
    reads = name != "AutoEncoderTopK"
    folder = "org/dict/resid_post_layer_3/trainer_0"
    return Layout(
        f"dict:{name}", f"{folder}/ae.pt", names, enc, 1 - enc, (f"{folder}/config.json", config), more or {}, {}, reads
    )


LAYOUTS = [
    Layout("saelens", "sae/sae_weights.safetensors", JUMPRELU, 1, 0, ("sae/cfg.json", SAELENS_CONFIG)),
    Layout("gemma-scope", f"{GEMMA}/params.npz", JUMPRELU, 1, 0),
    Layout(
        "gemma-scope-2",
        f"{GEMMA2}/params.safetensors",
        {ours: name.lower() for ours, name in JUMPRELU.items()},
        1,
        0,
        (
            f"{GEMMA2}/config.json",
            {
                "architecture": "jump_relu",
                "model_name": "gemma-v3-4b-pt",
                "hf_hook_point_in": "model.layers.17.output",
                "width": D_SAE,
            },
        ),
    ),
    Layout(
        "llama-scope",
        f"{LLAMA}/checkpoints/final.safetensors",
        {**LINEAR, "b_dec": "decoder.bias"},
        0,
        1,
        (
            f"{LLAMA}/hyperparams.json",
            {
                "d_model": D_IN,
                "d_sae": D_SAE,
                "act_fn": "jumprelu",
                "jump_relu_threshold": 0.75,
                "norm_activation": "dataset-wise",
                "dataset_average_activation_norm": {"in": 6.25, "out": 6.25},
                "hook_point_in": "blocks.15.hook_resid_post",
                "hook_point_out": "blocks.15.hook_resid_post",
                "use_decoder_bias": True,
                "apply_decoder_bias_to_pre_encoder": False,
            },
        ),
    ),
    Layout(
        "goodfire",
        f"{GOODFIRE}/Llama-3.1-8B-Instruct-SAE-l19.pth",
        {
            "W_enc": "encoder_linear.weight",
            "W_dec": "decoder_linear.weight",
            "b_enc": "encoder_linear.bias",
            "b_dec": "decoder_linear.bias",
        },
        0,
        1,
    ),
    Layout("qwen-scope", f"{QWEN}/layer5.sae.pt", PLAIN, 0, 1, reads=False),
    Layout(
        "sparsify",
        "run/layers.7/sae.safetensors",
        {**LINEAR, "W_dec": "W_dec"},
        0,
        0,
        ("run/layers.7/cfg.json", {"d_in": D_IN, "num_latents": D_SAE, "expansion_factor": 32, "k": 4}),
        others={"run/config.json": {"model": "org/tiny"}},
        reads=False,
    ),
    dictionary("AutoEncoder", {**LINEAR, "b_dec": "bias"}, 0),
    dictionary("AutoEncoderNew", {**LINEAR, "b_dec": "decoder.bias"}, 0),
    dictionary(
        "GatedAutoEncoder",
        {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "mag_bias", "b_dec": "decoder_bias"},
        0,
        {"r_mag": GATES["r_mag"], "gate_bias": GATES["b_gate"]},
    ),
    dictionary("JumpReluAutoEncoder", JUMPRELU, 1),
    dictionary("BatchTopKSAE", LINEAR, 0, {"threshold": torch.tensor(0.6), "k": torch.tensor(4)}),
    dictionary("MatryoshkaBatchTopKSAE", PLAIN, 1, {"threshold": torch.tensor(0.6), "k": torch.tensor(4)}),
    dictionary("AutoEncoderTopK", LINEAR, 0, {"threshold": torch.tensor(-1.0), "k": torch.tensor(4)}, k=4),
]
BY_KEY = {layout.key: layout for layout in LAYOUTS}
