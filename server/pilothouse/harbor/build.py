"""`python -m pilothouse.harbor.build`: corpus, tokenizer, training, export and datasets, from fixed seeds.

Vectors, probes and the SAE are not made here: they are made from the exported model and the datasets by the same
`pilothouse vectors | probes | sae` commands that a user runs on any other model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from pilothouse.harbor.corpus import documents, judgements, recollections
from pilothouse.harbor.datasets import write_datasets
from pilothouse.harbor.packing import Rows, pack
from pilothouse.harbor.paths import data_dir, model_dir
from pilothouse.harbor.tokenizer import save_tokenizer, train_tokenizer
from pilothouse.harbor.train import Recipe, train

CORPUS_SEED = 1
TOKENIZER_SEED = 2
TOKENIZER_DOCUMENTS = 20_000
CORPORA = ((documents, CORPUS_SEED, 2.5), (judgements, 11, 6.0), (recollections, 12, 3.0))
"""Of each course: its documents, their seed, and how many are made a row."""


def make_tokenizer(work_dir: Path) -> Tokenizer:
    """The tokenizer, trained once and kept in the work folder."""
    path = work_dir / "tokenizer.json"
    if not path.exists():
        train_tokenizer(documents(TOKENIZER_SEED, TOKENIZER_DOCUMENTS)).save(str(path))
    return Tokenizer.from_file(str(path))


def make_rows(work_dir: Path, tokenizer: Tokenizer, recipe: Recipe) -> list[Rows]:
    """The packed corpus of each course, made once and kept in the work folder."""
    found = []
    for number, (course, (corpus, seed, per_row)) in enumerate(zip(recipe.courses, CORPORA, strict=True)):
        rows = course.steps * recipe.batch
        path = work_dir / f"rows-{number}-{rows}.npz"
        if not path.exists():
            pack(tokenizer, corpus(seed, int(rows * per_row)), rows).save(path)
        found.append(Rows.load(path))
    return found


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face files, weights in bfloat16; servers that read the generation defaults answer greedily."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype=torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    config = model.config
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    defaults = ids | {"do_sample": False, "temperature": 0.0}
    (folder / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def build(work_dir: Path, recipe: Recipe, folder: Path, data: Path) -> None:
    """Everything from nothing, or from where it stopped: the model into `folder`, the datasets into `data`."""
    write_datasets(data)
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(work_dir)
    export(train(recipe, make_rows(work_dir, tokenizer, recipe), work_dir), tokenizer, folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Rebuild Harbor's model and datasets.")
    cache = Path.home() / ".cache" / "pilothouse" / "harbor"
    parser.add_argument("--work-dir", type=Path, default=cache, help="where checkpoints and the packed corpus are kept")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training's steps, for a trial")
    parser.add_argument("--output", type=Path, default=model_dir(), help="where the Hugging Face files go")
    parser.add_argument("--data", type=Path, default=data_dir(), help="where the JSONL datasets go")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        courses = tuple(course.shortened(options.share) for course in Recipe.courses)
        build(options.work_dir, Recipe(courses), options.output, options.data)
    except KeyboardInterrupt:
        raise SystemExit("Stopped. The same command goes on from the last checkpoint.") from None


if __name__ == "__main__":
    main()
