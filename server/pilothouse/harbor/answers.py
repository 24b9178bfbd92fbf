"""The model's own greedy answers, right and wrong: what a probe of doubt is trained and judged on.

`python -m pilothouse.harbor.answers` asks the model in the serving engine and writes `answers.jsonl` to the datasets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pilothouse.core.items import Message
from pilothouse.core.plans import Plan
from pilothouse.core.serving import Generated, SteeredModel
from pilothouse.harbor.datasets import load_lines
from pilothouse.harbor.paths import data_dir, model_dir

MAX_TOKENS = 48
BATCH = 256

Question = dict[str, Any]


def ask(
    model: SteeredModel,
    chats: Sequence[Sequence[dict[str, str]]],
    plan: Plan | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Generated]:
    """The greedy answer to each chat, all under one plan, in order; `advance` is told how many there are more."""
    plan = plan or Plan()
    for first in range(0, len(chats), BATCH):
        prompts = [model.encode(list(chat), add_generation_prompt=True) for chat in chats[first : first + BATCH]]
        yield from model.generate(prompts, [plan] * len(prompts), MAX_TOKENS)
        advance(len(prompts))


def is_right(question: Question, answer: str) -> bool:
    """Whether the answer holds the whole reply that the model was taught: the fact first and again in its sentence.

    A hedge or words of a tone may stand around it.
    """
    return str(question["reply"]) in answer


def doubtful_items(questions: Sequence[Question], answers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Labelled items (see `pilothouse.probing.statements`): label 1 is an answer that the model made up.

    Questions about invented entities alone: their `bucket` says how often the model saw them, their `group` is the
    entity, so that one entity lies in one split.
    """
    for question, answer in zip(questions, answers, strict=True):
        if question["entity_frequency"] is not None and answer.strip():
            message = Message(role="assistant", content=answer).model_dump()
            yield {
                "messages": [*question["messages"], message],
                "label": int(not is_right(question, answer)),
                "topic": question["topic"],
                "bucket": question["entity_frequency"],
                "group": question["entity"],
                "split": question["split"],
            }


def embedded_model() -> SteeredModel:
    """Harbor in the serving engine, as `pilothouse serve` serves it: float32, at most 64 requests at once."""
    from pilothouse.engine.offline import OfflineEngine

    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20}
    return OfflineEngine(str(model_dir()), "harbor", max_num_seqs=64, **options)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ask Harbor about invented entities and label its answers.")
    parser.add_argument("--output", type=Path, default=data_dir() / "answers.jsonl", help="where the items go")
    options = parser.parse_args()
    questions = load_lines("questions")
    model = embedded_model()
    try:
        answers = [generated.text for generated in ask(model, [q["messages"] for q in questions])]
    finally:
        model.close()
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in doubtful_items(questions, answers)]
    options.output.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
