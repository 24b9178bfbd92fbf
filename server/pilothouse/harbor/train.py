"""Training of Harbor: a small Llama in float32 with bfloat16 products where the processor has them; resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import LlamaConfig, LlamaForCausalLM

from pilothouse.harbor.corpus import BEGIN, END, SPECIAL_TOKENS, STAGES
from pilothouse.harbor.packing import Rows, block_mask
from pilothouse.harbor.tokenizer import MAX_POSITIONS, VOCAB_SIZE

SECONDS_BETWEEN_CHECKPOINTS = 50.0
STEPS_BETWEEN_REPORTS = 50
TARGETS_STEP = 256
NO_TARGET = -100


@dataclass(frozen=True)
class Course:
    """A part of a training, over a corpus of its own: its rate rises over `warmup` steps, and from step `falls` on it
    falls in a line to a hundredth."""

    steps: int
    learning_rate: float
    warmup: int
    falls: int

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted in this course."""
        rising = (step + 1) / self.warmup
        falling = 0.01 + 0.99 * (self.steps - step) / (self.steps - self.falls)
        return self.learning_rate * min(1.0, rising, falling)

    def shortened(self, share: float) -> Course:
        """The same course in a share of its steps."""
        steps, warmup, falls = (max(1, round(share * n)) for n in (self.steps, self.warmup, self.falls))
        return Course(max(steps, falls + 1), self.learning_rate, warmup, falls)


@dataclass(frozen=True)
class Recipe:
    """What decides a training run; `batch` is in rows of `packing.LENGTH` tokens.

    What is so is learned first, and then to tell it from what is said: both at once, the second was learned by halves.
    A last course brings back what the second one left out.
    """

    courses: tuple[Course, ...] = (
        Course(8000, 1.5e-3, 100, 6000),
        Course(1800, 1.2e-3, 50, 1200),
        Course(1100, 8e-4, 20, 300),
    )
    batch: int = 16
    weight_decay: float = 0.05
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of all courses."""
        return sum(course.steps for course in self.courses)

    def place(self, step: int) -> tuple[int, int]:
        """The number of the course that a step lies in, and of the step in this course."""
        number = 0
        while step >= self.courses[number].steps:
            step -= self.courses[number].steps
            number += 1
        return number, step


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained Harbor of 5.7 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL_TOKENS.index(BEGIN),
        eos_token_id=SPECIAL_TOKENS.index(END),
        pad_token_id=SPECIAL_TOKENS.index("<|pad|>"),
    )
    return LlamaForCausalLM(config)


def _fast_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def learned_targets(tokens: torch.Tensor, learn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions [n] in tokens [batch, LENGTH] whose next token is learned, and that token [n], or NO_TARGET.

    n is a multiple of TARGETS_STEP: kernels are kept for every shape that they meet, and every batch had its own.
    """
    length = tokens.shape[1]
    found = learn[:, 1:].nonzero()
    where = found[:, 0] * length + found[:, 1]
    targets = tokens.flatten()[where + 1]
    missing = -len(where) % TARGETS_STEP
    return torch.nn.functional.pad(where, (0, missing)), torch.nn.functional.pad(targets, (0, missing), value=NO_TARGET)


def row_numbers(n_rows: int, step: int, batch: int) -> NDArray[np.int64]:
    """Rows [batch] of a step: in their order and then, if the run is longer than the corpus, its last stage again."""
    wanted = np.arange(step * batch, (step + 1) * batch)
    last_stage = round(n_rows * STAGES[-2].until)
    repeated = last_stage + (wanted - n_rows) % (n_rows - last_stage)
    return np.where(wanted < n_rows, wanted, repeated)


class Training:
    """The state of one run: model, optimizer and step, in `folder/checkpoint.pt`; `rows` are those of each course."""

    def __init__(self, recipe: Recipe, rows: Sequence[Rows], folder: Path) -> None:
        self.recipe = recipe
        self.rows = rows
        self.checkpoint = folder / "checkpoint.pt"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = new_model(recipe.seed).to(self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.loss = float("nan")
        if self.checkpoint.exists():
            self._resume()

    def _groups(self) -> list[dict[str, object]]:
        """Weight decay for matrices, none for norms."""
        parameters = list(self.model.parameters())
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        return [{"params": matrices, "weight_decay": self.recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self) -> None:
        """Write the checkpoint in one stroke, so that an interrupted write leaves the last one whole."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [batch, LENGTH] of this step and whether each is to be learned."""
        course, step = self.recipe.place(self.step)
        rows = self.rows[course]
        index = row_numbers(len(rows.tokens), step, self.recipe.batch)
        tokens = torch.from_numpy(rows.tokens[index].astype(np.int64))
        return tokens.to(self.device), torch.from_numpy(rows.learn[index]).to(self.device)

    def advance(self) -> None:
        """One optimizer step; `loss` becomes a running mean of the cross-entropy in nats per learned token."""
        tokens, learn = self._batch()
        where, targets = learned_targets(tokens, learn)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=_fast_bfloat16(self.device)):
            hidden = self.model.model(input_ids=tokens, attention_mask=block_mask(tokens)).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1)[where])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        course, step = self.recipe.place(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.courses[course].rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = loss.item() if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss.item()
        self.step += 1

    def run(self) -> Generator[int, None, None]:
        """Train to the end and yield each step; the checkpoint is never older than a minute, however it stops."""
        saved = time.monotonic()
        try:
            while self.step < self.recipe.steps:
                self.advance()
                yield self.step
                if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()


def train(recipe: Recipe, rows: Sequence[Rows], folder: Path) -> LlamaForCausalLM:
    """Run or resume a training with a progress bar, and return the model."""
    training = Training(recipe, rows, folder)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=recipe.steps, completed=training.step)
        for step in training.run():
            progress.update(task, completed=step, description=f"training, loss {training.loss:.3f}")
            if step % STEPS_BETWEEN_REPORTS == 0:
                progress.console.print(f"{time.strftime('%H:%M:%S')} step {step} loss {training.loss:.4f}")
    return training.model
