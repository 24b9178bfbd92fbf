"""What the publishers' code makes of a file: SAELens's own loaders and classes, or the forward pass spelt out."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_support.layouts import D_IN, D_SAE, GEMMA, GEMMA2, GOODFIRE, LLAMA, QWEN, Tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.loading import pretrained_sae_loaders as loaders

SIZES: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"}
TOP_K: dict[str, Any] = {"activation_fn_kwargs": {"k": 4}}
Loader = Callable[..., Any]


class Oracle:
    """encode: [n, d_in] to [n, d_sae]; decode: back."""

    def __init__(
        self, encode: Callable[[torch.Tensor], torch.Tensor], decode: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.encode, self.decode = encode, decode

    def rows(self) -> torch.Tensor:
        """What one unit of each feature adds, [d_sae, d_in]."""
        with torch.no_grad():
            return self.decode(torch.eye(D_SAE)) - self.decode(torch.zeros(1, D_SAE))


def of_saelens(sae: Any, factor: float | None = None) -> Oracle:
    """SAELens's own class, its normalisation folded in by itself."""
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    return Oracle(sae.encode, sae.decode)


def through_loader(monkeypatch: pytest.MonkeyPatch, root: Path, key: str) -> Oracle:
    """The SAE that SAELens's loader for this format makes of the files below `root`, which stands for the hub."""

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        return str(root / repo_id / (subfolder or "") / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    monkeypatch.setattr(
        loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [D_IN, D_SAE], "w_dec": [D_SAE, D_IN]}
    )
    loader, repository, folder, more = LOADERS[key.split(":")[0]]
    cfg, state, _ = loader(repository, folder, "cpu", False, {**SIZES, **more})
    scaled = cfg.get("normalize_activations") == "expected_average_only_in"
    cfg = loaders.handle_config_defaulting(cfg)
    config_class = sae_lens.SAE.get_sae_config_class_for_architecture(cfg["architecture"])
    sae = sae_lens.SAE.get_sae_class_for_architecture(cfg["architecture"])(config_class.from_dict(cfg))
    sae.load_state_dict(state)
    return of_saelens(sae, D_IN**0.5 / 6.25 if scaled else None)


def _split(path: str) -> tuple[str, str]:
    owner, repository, folder = path.split("/", 2)
    return f"{owner}/{repository}", folder


LOADERS: dict[str, tuple[Loader, str, str, dict[str, Any]]] = {
    "gemma-scope": (loaders.gemma_2_sae_huggingface_loader, *_split(GEMMA), {}),
    "gemma-scope-2": (loaders.gemma_3_sae_huggingface_loader, *_split(GEMMA2), {}),
    "llama-scope": (loaders.llama_scope_sae_huggingface_loader, *_split(LLAMA), {}),
    "goodfire": (loaders.get_goodfire_huggingface_loader, GOODFIRE, "Llama-3.1-8B-Instruct-SAE-l19.pth", {}),
    "qwen-scope": (loaders.qwen_scope_sae_huggingface_loader, QWEN, "layer5.sae.pt", TOP_K),
    "dict": (loaders.dictionary_learning_sae_huggingface_loader_1, "org/dict", "resid_post_layer_3/trainer_0", {}),
}


def sparsify(tensors: Tensors, k: int = 4) -> Oracle:
    """EleutherAI's forward pass: subtract b_dec, relu, the k strongest, W_dec by rows."""

    def encode(h: torch.Tensor) -> torch.Tensor:
        acts = torch.relu((h - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"])
        kept = acts.topk(k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, kept.indices, kept.values)

    return Oracle(encode, lambda acts: acts @ tensors["W_dec"] + tensors["b_dec"])


def april_update(tensors: Tensors) -> Oracle:
    """dictionary_learning's AutoEncoderNew: two linear layers, nothing subtracted."""
    return Oracle(
        lambda h: torch.relu(h @ tensors["encoder.weight"].T + tensors["encoder.bias"]),
        lambda acts: acts @ tensors["decoder.weight"].T + tensors["decoder.bias"],
    )


def llama_scope(tensors: Tensors, threshold: float, factor: float) -> Oracle:
    """Its authors' inference form, in units of the raw stream: the encoder's bias divided by the factor, the threshold
    and the decoder as they are. Activations are smaller by the factor than those of the scaled stream, rows larger."""

    def encode(h: torch.Tensor) -> torch.Tensor:
        pre = h @ tensors["encoder.weight"].T + tensors["encoder.bias"] / factor
        return torch.where(pre > threshold, pre, 0.0)

    return Oracle(encode, lambda acts: acts @ tensors["decoder.weight"].T + tensors["decoder.bias"] / factor)
