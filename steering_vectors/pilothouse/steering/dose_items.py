"""What a dose is measured on: prompts with what their answers must and must not say, and neutral texts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item, Message, read_jsonl

Strings = tuple[Annotated[str, Field(min_length=1)], ...]


class DosePrompt(BaseModel):
    """One line of a JSONL file. Strings are looked for anywhere in the answer, as whole words and in whatever case."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None
    expect: Strings = ()
    reject: Strings = ()
    topic: str | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if not self.expect and not self.reject:
            raise ValueError("give expect, reject or both: else every answer would do")
        if self.messages is not None and self.messages[-1].role == "assistant":
            raise ValueError("the messages already end with an answer")
        return self

    @property
    def item(self) -> Item:
        """The prompt, a text or a chat."""
        if self.messages is not None:
            return self.messages
        return self.prompt or ""

    def satisfied(self, answer: str) -> bool:
        """Whether `answer` has any of `expect` (when there are any) and none of `reject`."""
        folded = answer.casefold()
        wanted = not self.expect or any(_says(folded, text.casefold()) for text in self.expect)
        return wanted and not any(_says(folded, text.casefold()) for text in self.reject)


def _says(answer: str, text: str) -> bool:
    """Whether `text` is in `answer` and not merely a part of a word: broken models say Berlinoslo."""
    starts = (start for start in range(len(answer)) if answer.startswith(text, start))
    return any(
        not _joined(answer[start - 1 : start], text[0])
        and not _joined(text[-1], answer[start + len(text) : start + len(text) + 1])
        for start in starts
    )


def _joined(left: str, right: str) -> bool:
    """Whether two characters that adjoin are of one word; scripts without case may write words without spaces."""
    return all(char.isdecimal() or char.lower() != char.upper() for char in (left, right))


class _Text(BaseModel):
    """One line of a JSONL file of texts; other keys are the file's own business."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: Annotated[str, Field(min_length=1)]


def load_prompts(path: Path) -> list[DosePrompt]:
    """The prompts of a JSONL file; ArtefactError names the line that is wrong."""
    return read_jsonl(path, DosePrompt)


def load_texts(path: Path) -> list[str]:
    """Neutral texts: of a ``.jsonl`` file the key `text` of each line, of any other file its lines."""
    if path.suffix == ".jsonl":
        return [line.text for line in read_jsonl(path, _Text)]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ArtefactError(f"{path} has no items")
    return texts


def digest_lines(lines: Sequence[DosePrompt | str]) -> str:
    """``sha256:`` over the items in order: the identity of a data set, however its file was formatted."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update((line if isinstance(line, str) else line.model_dump_json()).encode() + b"\n")
    return f"sha256:{sha.hexdigest()}"
