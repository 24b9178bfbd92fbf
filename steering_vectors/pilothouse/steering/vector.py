"""A steering vector: a direction per layer and what is known of where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pilothouse.core.artefact import check_fits
from pilothouse.core.directions import Direction
from pilothouse.core.sites import ModelShape


@dataclass(frozen=True, eq=False)
class Vector:
    """Rows of d_model float32, one a layer, used as stored (not normalised), and their card.

    default_layers: where it acts when a request names no layers; resid_norm: mean L2 norm of the stream by layer, the
    unit `resid_norm` of strength; recommended: lowest and highest useful strength; card: the whole JSON card.
    """

    name: str
    direction: Direction
    model: str | None
    site: str
    method: str | None
    default_layers: tuple[int, ...]
    resid_norm: Mapping[int, float]
    recommended: tuple[float, float] | None
    card: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """``sha256:`` and the digest of the rows, whatever the vector is called."""
        return "sha256:" + self.direction.digest.hex()

    @property
    def full_card(self) -> dict[str, Any]:
        """The card with the vector's own attributes taking precedence over what it came with."""
        return {
            **self.card,
            "format": 1,
            "kind": "vector",
            "name": self.name,
            "model": self.model,
            "site": self.site,
            "method": self.method,
            "default_layers": list(self.default_layers),
            "resid_norm": {str(layer): norm for layer, norm in self.resid_norm.items()},
            "recommended": None if self.recommended is None else list(self.recommended),
        }

    def check_fits(self, shape: ModelShape) -> None:
        """ArtefactError unless model, layers and width are the served model's."""
        widths = {layer: len(row) for layer, row in self.direction.layers.items()}
        check_fits(f"vector {self.name!r}", self.model, widths, shape)
