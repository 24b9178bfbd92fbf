"""The work of `sae train` and `sae label` from texts to folders, in a work folder from which it goes on."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_examples import TopRows, top_rows
from pilothouse.steering.sae_folder import write_draft
from pilothouse.steering.sae_formats.registry import WORK_MARK
from pilothouse.steering.sae_measure import SaeMeasures, measure_sae
from pilothouse.steering.sae_pass import load_encoder
from pilothouse.steering.sae_settings import SaeSettings
from pilothouse.steering.sae_store import KeptAs, RowStore
from pilothouse.steering.sae_texts import SaeText, digest_texts
from pilothouse.steering.sae_training import Trained, train_sae

Bars = Callable[[str], AbstractContextManager[Progress | None]]
"""Draws progress, under a title, for as long as the block runs."""

Opener = Callable[[], AbstractContextManager[ActivationSource]]
"""Starts what activations are read from, for as long as the block runs."""


@dataclass(frozen=True)
class ReadPlan:
    """Which activations: of `layer`, the first `context` tokens of a text, about `most` tokens in all; `model` (JSON)
    tells the model from others."""

    layer: int
    context: int
    model: Mapping[str, Any]
    most: int | None = None
    kept_as: KeptAs = "float32"


class SaeWork:
    """The work folder: a store for each side (a name and its texts), checkpoints, a draft, and passes."""

    def __init__(self, folder: Path, bars: Bars, resume: bool = True) -> None:
        self.folder = folder
        self.bars = bars
        self.resume = resume
        if folder.exists() and not (folder / WORK_MARK).is_file():
            raise ArtefactError(f"{folder} is not a work folder of an SAE")
        if not resume:
            self.remove()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WORK_MARK).write_text("pilothouse sae\n", encoding="utf-8")

    def read(self, sides: Mapping[str, Sequence[SaeText]], plan: ReadPlan, opener: Opener) -> dict[str, RowStore]:
        """The activations of each side. The source is opened only when some are missing."""
        stores = {}
        for side, texts in sides.items():
            asked = {"layer": plan.layer, "context": plan.context, "model": plan.model, "tokens": plan.most}
            key = {**asked, "texts": digest_texts(texts)}
            stores[side] = RowStore.open(self.folder / side, key, self.resume, plan.kept_as)
        if not all(store.complete for store in stores.values()):
            with opener() as source:
                for side, store in stores.items():
                    if not store.complete:
                        with self.bars(f"reading {side} texts") as progress:
                            store.fill(source, sides[side], plan.layer, plan.context, plan.most, progress)
        return stores

    def train(
        self, stores: Mapping[str, RowStore], settings: SaeSettings, metadata: Mapping[str, Any]
    ) -> tuple[Trained, dict[str, SaeMeasures]]:
        """An SAE trained on side `train`, drafted in SAELens's form, and measured by that on every side."""
        with self.bars("training") as progress:
            checkpoints = self.folder / "checkpoints"
            trained = train_sae(stores["train"].rows, settings, metadata, checkpoints, self.resume, progress)
        write_draft(trained.sae, self.draft)
        encoder, measures = load_encoder(self.draft), {}
        for side, store in stores.items():
            with self.bars(f"measuring on {side} texts") as progress:
                kept = self.folder / f"measured.{side}.safetensors"
                measures[side] = measure_sae(encoder, store.rows, kept, progress)
        return trained, measures

    def top_rows(self, sae_folder: Path, store: RowStore, top: int, digest: str) -> TopRows:
        """The strongest activations of each feature of the SAE in a folder, whose weights have this digest."""
        encoder = load_encoder(sae_folder)
        if encoder.cfg.d_in != store.d_model:
            raise ArtefactError(
                f"{sae_folder} is {encoder.cfg.d_in} wide, but the activations are {store.d_model} wide"
            )
        with self.bars("looking for examples") as progress:
            return top_rows(encoder, store, top, self.folder / f"top{top}.{digest[-12:]}.safetensors", progress)

    @property
    def draft(self) -> Path:
        return self.folder / "draft"

    def remove(self) -> None:
        """Delete the folder: the run is complete, or begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def hook_metadata(layer: int, model: str, context: int) -> dict[str, Any]:
    """What SAELens's configuration says of where an SAE belongs: the stream after block `layer`, without position 0."""
    return {
        "model_name": model,
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hook_head_index": None,
        "context_size": context,
        "prepend_bos": True,
        "seqpos_slice": [1, None],
    }
