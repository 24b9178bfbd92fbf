"""Training of an SAE by SAELens's own trainer, on rows kept in a file, in steps that an interruption does not lose."""

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_settings import SaeSettings, sae_lens, training_sae
from pilothouse.steering.unfinished import require_same_key, write_key

CHECKPOINT_SECONDS = 30.0
CURVE_POINTS = 100
SAMPLED_ROWS = 65536
"""Rows by which the stream's mean and scale are told."""

CURVE = {
    "loss": "losses/overall_loss",
    "mse": "losses/mse_loss",
    "l0": "metrics/l0",
    "explained_variance": "metrics/explained_variance",
    "dead": "sparsity/dead_features",
    "learning_rate": "details/current_learning_rate",
}


@dataclass(frozen=True)
class Trained:
    """A trained SAE of SAELens in units of the stream, each decoder row of norm 1, and the loss curve.

    A point of the curve: step, tokens, and of that step's batch the loss, mse (both of the stream scaled to a mean norm
    of sqrt(d_in), mse summed over dimensions), l0, explained variance, and features that have long been silent.
    """

    sae: Any
    curve: list[dict[str, float]]
    steps: int


class Batches:
    """Shuffled batches of rows, one a step: each is a function of its number, so that any step can be gone on from."""

    def __init__(self, rows: npt.NDArray[Any], size: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self.size = min(size, len(rows))
        self._an_epoch = len(rows) // self.size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, step: int) -> npt.NDArray[np.float32]:
        """[size, d_model]; every row once an epoch, but for a rest that is smaller than a batch."""
        epoch, place = divmod(step, self._an_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
        # In the file's order, which a disk prefers; within a batch it is of no matter.
        chosen = np.sort(self._order[place * self.size : (place + 1) * self.size])
        return self._rows[chosen].astype(np.float32)


def train_sae(
    rows: npt.NDArray[Any],
    settings: SaeSettings,
    metadata: Mapping[str, Any],
    folder: Path,
    resume: bool = True,
    progress: Progress | None = None,
    seconds: float = CHECKPOINT_SECONDS,
) -> Trained:
    """Train on `rows` [n, d_model], with a checkpoint in `folder` every so many seconds, going on from the last one.

    `metadata` goes into the SAE's configuration (SAELens: model_name, hook_name, ...). The same rows and settings give
    the same SAE, however often it was stopped. ArtefactError for rows that are all alike.
    """
    batches = Batches(rows, settings.batch, settings.seed)
    steps = max(settings.tokens // batches.size, 1)
    with _quiet():
        trainer = _trainer(rows, batches, settings, steps, metadata)
        checkpoints = Checkpoints(folder, {**settings.card, "n_rows": len(rows)}, resume)
        curve = checkpoints.load(trainer)
        kept = time.monotonic()
        while trainer.n_training_steps < steps:
            _step(trainer, batches, steps, curve)
            if trainer.n_training_steps == steps or time.monotonic() - kept >= seconds:
                checkpoints.save(trainer, curve)
                kept = time.monotonic()
            if progress:
                progress(trainer.n_training_samples, steps * batches.size)
        _fold(trainer)
    return Trained(trainer.sae, curve, steps)


class Checkpoints:
    """``step-N``: SAELens's weights, configuration and trainer state, and the curve so far. Only the last is kept."""

    def __init__(self, folder: Path, key: Mapping[str, Any], resume: bool) -> None:
        self.folder = folder
        card = folder / "key.json"
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        if card.exists():
            require_same_key(card, key)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_key(card, key)

    def load(self, trainer: Any) -> list[dict[str, float]]:
        """Bring the trainer to the last checkpoint, if any; the curve up to there."""
        found = self._all()
        if not found:
            return []
        trainer.sae.load_weights_from_checkpoint(found[-1])
        trainer.load_trainer_state(found[-1])
        curve: list[dict[str, float]] = json.loads((found[-1] / "curve.json").read_text(encoding="utf-8"))
        return curve

    def save(self, trainer: Any, curve: list[dict[str, float]]) -> None:
        """Written aside and moved: a checkpoint is whole, or is not there."""
        older, partial = self._all(), self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        trainer.save_checkpoint("partial", base_path=self.folder)
        (partial / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
        final = self.folder / f"step-{trainer.n_training_steps:09d}"
        partial.rename(final)
        for path in older:
            if path != final:
                shutil.rmtree(path)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _trainer(
    rows: npt.NDArray[Any], batches: Batches, settings: SaeSettings, steps: int, metadata: Mapping[str, Any]
) -> Any:
    """SAELens's SAETrainer, before its first step; its loop is ours, through the calls it has for that."""
    import torch

    library = sae_lens()
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    sample = rows[:: max(len(rows) // SAMPLED_ROWS, 1)].astype(np.float64)
    mean, norm = sample.mean(axis=0), np.linalg.norm(sample, axis=1).mean()
    if not (sample != sample[0]).any():
        raise ArtefactError("the activations are the same at every token: there is nothing to train on")
    scale = float(rows.shape[1] ** 0.5 / norm)
    sae = training_sae(rows.shape[1], settings, steps, metadata)
    with torch.no_grad():
        # Gao et al. begin at the data's geometric median: without it the first features learn the mean.
        sae.b_dec.copy_(torch.from_numpy(mean * scale))
    config = SAETrainerConfig(
        total_training_samples=steps * batches.size,
        train_batch_size_samples=batches.size,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        device=settings.device,
        dead_feature_window=min(max(steps // 20, 10), 1000),
        feature_sampling_window=steps + 1,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = library.SAETrainer(config, sae.to(settings.device), iter(()))
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def _step(trainer: Any, batches: Batches, steps: int, curve: list[dict[str, float]]) -> None:
    import torch

    output = trainer.step(torch.from_numpy(batches[trainer.n_training_steps]))
    trainer.n_training_steps += 1
    if trainer.n_training_steps % max(steps // CURVE_POINTS, 1) == 0 or trainer.n_training_steps == steps:
        log = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
        point = {"step": trainer.n_training_steps, "tokens": trainer.n_training_samples}
        curve.append({**point, **{name: float(log[key]) for name, key in CURVE.items()}})
        if not np.isfinite(curve[-1]["loss"]):
            raise ArtefactError(f"training diverged by step {trainer.n_training_steps}: --no-resume and a lower --rate")


def _fold(trainer: Any) -> None:
    """Bring the SAE into units of the stream. Top-k rows get norm 1 when SAELens saves them, JumpReLU's here."""
    sae = trainer.sae
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    if sae.cfg.architecture() == "jumprelu":
        sae.threshold.data.clamp_(min=0.0)
        sae.fold_W_dec_norm()
    sae.to("cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Torch's chained schedules call their parts in a way that torch itself has deprecated.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.*", category=UserWarning)
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step", category=UserWarning)
        yield
