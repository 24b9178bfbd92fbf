"""Writing of an SAE folder: SAELens's two files, the features' statistics, and a report."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pilothouse.core.artefact import parse_json, read_artefact
from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae_formats.saelens import CONFIG, WEIGHTS
from pilothouse.steering.sae_measure import SaeMeasures

FEATURE_STATISTICS = "feature_stats.safetensors"
REPORT = "report.json"

EXPLAINED_VARIANCE = "1 - sum over dimensions of the squared error / sum over dimensions of the variance about its mean"


def write_draft(sae: Any, draft: Path) -> None:
    """Write the inference form of SAELens's trained `sae`: ``cfg.json`` and ``sae_weights.safetensors`` (version 6)."""
    shutil.rmtree(draft, ignore_errors=True)
    sae.save_inference_model(draft)
    # The weights' writer makes files that only their owner may read; a server is often somebody else.
    shutil.copymode(draft / CONFIG, draft / WEIGHTS)


def finish_folder(
    draft: Path, folder: Path, train: SaeMeasures, held_out: SaeMeasures, report: Mapping[str, Any]
) -> dict[str, Any]:
    """Add what was measured to a draft and move it to `folder`; the whole report.

    ``feature_stats.safetensors``: `max_act` and `frequency` [d_sae] float32 over the training tokens. ``report.json``:
    `report` and the measures. ``cfg.json`` gets the figures under its `metadata`. ArtefactError when `folder` exists.
    """
    check_free(folder)
    statistics = {"max_act": train.max_act, "frequency": train.frequency}
    arrays = {name: np.ascontiguousarray(array) for name, array in statistics.items()}
    (draft / FEATURE_STATISTICS).write_bytes(save(arrays))
    whole = {
        **report,
        "definitions": {"explained_variance": EXPLAINED_VARIANCE},
        "held_out": held_out.card,
        "train": {**train.card, "dead_in_held_out_too": int(((train.fired == 0) & (held_out.fired == 0)).sum())},
        "features": {
            "max_act": train.max_act.tolist(),
            "frequency": train.frequency.tolist(),
            "held_out_frequency": held_out.frequency.tolist(),
        },
    }
    (draft / REPORT).write_text(json.dumps(whole, allow_nan=False) + "\n", encoding="utf-8")
    config = json.loads((draft / CONFIG).read_text(encoding="utf-8"))
    names = ("explained_variance", "l0", "dead_share", "mse", "tokens")
    config["metadata"]["held_out"] = {name: whole["held_out"][name] for name in names}
    (draft / CONFIG).write_text(json.dumps(config, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder)
    return whole


def check_free(folder: Path) -> None:
    """ArtefactError when something is at `folder`: an SAE takes long to make, and is never written over."""
    if folder.exists():
        raise ArtefactError(f"{folder} exists already: remove it, or choose another --name or --out")


def read_report(folder: Path) -> dict[str, Any] | None:
    """``report.json``, or None: folders that come from elsewhere have none."""
    path = folder / REPORT
    if not path.exists():
        return None
    content = parse_json(read_artefact(path))
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} must be a JSON object")
    return content
