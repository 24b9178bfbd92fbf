"""What an SAE is trained with, and the optional library that trains it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pilothouse.core.errors import StartupError

Architecture = Literal["topk", "jumprelu"]
"""topk: k-sparse, Gao et al. 2024 (arXiv 2406.04093). jumprelu: Rajamanoharan et al. 2024 (arXiv 2407.14435), with the
quadratic penalty around a target L0 of Gemma Scope 2."""

GAO_RATE, GAO_WIDTH = 2e-4, 2**14

L0_PULL = 1 / 1280
JUMPRELU: Mapping[str, Any] = {
    "jumprelu_init_threshold": 0.5,
    "jumprelu_bandwidth": 2.0,
    "jumprelu_ste_to_input": False,
    "pre_act_loss_coefficient": 0.01,
}
"""For a stream whose mean norm is the square root of its width. Found on planted dictionaries: SAELens's narrower
bandwidth (0.05) leaves more features dead, and so does passing the threshold's gradient on to the encoder."""


@dataclass(frozen=True)
class SaeSettings:
    """width: features; k: the features active at a token, exactly so for topk and as the mean aimed at for jumprelu;
    tokens: how many are trained on, the same ones again where there are fewer; batch: tokens a step; rate: Adam's,
    None for the scaling law of Gao et al.; device: as torch names it. StartupError for what cannot be."""

    architecture: Architecture = "topk"
    width: int = 2048
    k: int = 32
    tokens: int = 2_000_000
    batch: int = 1024
    rate: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.architecture not in ("topk", "jumprelu"):
            raise StartupError(f"the architecture is topk or jumprelu, not {self.architecture!r}")
        for name in ("width", "k", "tokens", "batch"):
            if getattr(self, name) < 1:
                raise StartupError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.k > self.width:
            raise StartupError(f"--k {self.k} is more than the {self.width} features of --width")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise StartupError(f"--rate must be positive, not {self.rate}")
        if self.seed < 0:
            raise StartupError(f"--seed must not be negative, not {self.seed}")

    @property
    def learning_rate(self) -> float:
        """2e-4 at 2**14 features, and as their inverse square root elsewhere (Gao et al. 2024, appendix A.3)."""
        return self.rate if self.rate is not None else float(GAO_RATE * (GAO_WIDTH / self.width) ** 0.5)

    @property
    def card(self) -> dict[str, Any]:
        names = ("architecture", "width", "k", "tokens", "batch", "seed")
        return {**{name: getattr(self, name) for name in names}, "learning_rate": self.learning_rate}


def sae_lens() -> Any:
    """The library SAELens, imported only here, being large and optional; StartupError that says how to install it."""
    try:
        with warnings.catch_warnings():
            # It imports names that its own dependencies have deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            import sae_lens as library
    except ImportError as error:
        raise StartupError(
            f"training and labelling SAEs needs sae-lens ({error}): pip install 'pilothouse[sae]'"
        ) from None
    return library


def check_device(device: str) -> None:
    """StartupError unless torch can compute on `device`."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise StartupError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None


def training_sae(d_in: int, settings: SaeSettings, steps: int, metadata: Mapping[str, Any]) -> Any:
    """SAELens's TrainingSAE, on the CPU, with fresh weights that depend on the seed alone."""
    import torch

    library = sae_lens()
    from sae_lens.saes.sae import SAEMetadata

    common = {
        "d_in": d_in,
        "d_sae": settings.width,
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(**metadata),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.architecture == "topk":
            return library.TopKTrainingSAE(library.TopKTrainingSAEConfig(k=settings.k, **common))
        return library.JumpReLUTrainingSAE(
            library.JumpReLUTrainingSAEConfig(
                jumprelu_sparsity_loss_mode="quadratic",
                target_l0=float(settings.k),
                # The pull towards k is 4 c / k a feature: so it is the same against any stream, of square norm d_in.
                l0_coefficient=L0_PULL * settings.k * d_in,
                l0_warm_up_steps=steps // 5,
                **common,
                **JUMPRELU,
            )
        )
