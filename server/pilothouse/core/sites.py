"""Where the residual stream is read and edited.

A site is the stream after decoder block L, 0-based: ``resid_post L``, TransformerLens ``blocks.L.hook_resid_post``,
Hugging Face ``hidden_states[L + 1]`` for every block but the last (whose entry there is already normalised).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SITE = "resid_post"

Float32 = npt.NDArray[np.float32]
LayerRows = Mapping[int, Float32]
"""One row of d_model float32 numbers for each layer that has one."""


@dataclass(frozen=True)
class ModelShape:
    """What an artefact must fit: the served model's name, width, depth and the layers that have a site.

    stages: the pipeline stage of every layer, where there are several; drafts: whether the engine verifies drafted
    tokens, several positions of a sequence at once.
    """

    model: str
    d_model: int
    n_layers: int
    sites: tuple[int, ...]
    stages: tuple[int, ...] = ()
    drafts: bool = False

    def stage(self, layer: int) -> int:
        """The pipeline stage that runs `layer`."""
        return self.stages[layer] if self.stages else 0
