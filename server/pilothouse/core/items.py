"""What activations are read from: raw texts or chats, in JSONL files, and which of their tokens are meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Annotated[str, Field(min_length=1)]
    content: str


Item = Annotated[str, Field(min_length=1)] | Annotated[tuple[Message, ...], Field(min_length=1)]
"""A raw text, or a chat that the model's template renders."""

LineT = TypeVar("LineT", bound=BaseModel)


@dataclass(frozen=True)
class Reading:
    """An item as token ids and the span [start, stop) of the tokens that are meant.

    A text: all but position 0, which is BOS or the attention sink that stands in for it. A chat that ends with an
    answer: the tokens of that answer, without the template around it, which are the ones that a server would have
    generated and scored. Any other chat: its last token, with the template's prompt for an answer appended.
    """

    token_ids: list[int]
    start: int
    stop: int


def read_item(source: ActivationSource, item: Item) -> Reading:
    """Encode `item` and find its span; ArtefactError when nothing is left of it."""
    if isinstance(item, str):
        ids = source.encode(item)
        reading = Reading(ids, min(1, len(ids) - 1), len(ids))
    elif item[-1].role != "assistant":
        ids = source.encode(_chat(item), add_generation_prompt=True)
        reading = Reading(ids, len(ids) - 1, len(ids))
    else:
        reading = _read_answer(source, item)
    if reading.start < 0 or reading.start >= reading.stop:
        raise ArtefactError(f"the tokenizer makes no tokens of {item!r}")
    return reading


def read_jsonl(path: Path, line_type: type[LineT]) -> list[LineT]:
    """One `line_type` a line, empty lines skipped; ArtefactError names the file, the line and what is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(line_type.model_validate_json(line))
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in problem["loc"])
                raise ArtefactError(f"{path}, line {number}: {where} {problem['msg']}".strip()) from None
    if not found:
        raise ArtefactError(f"{path} has no items")
    return found


def _read_answer(source: ActivationSource, chat: Sequence[Message]) -> Reading:
    ids = source.encode(_chat(chat))
    asked = source.encode(_chat(chat[:-1]), add_generation_prompt=True) if len(chat) > 1 else ids[:1]
    start = _common_prefix(ids, asked)
    # What follows an answer in the template is what two other answers have in common at the end.
    others = [source.encode(_chat([*chat[:-1], Message(role="assistant", content=text)])) for text in ("0", "x")]
    tail = min(_common_prefix(ids[::-1], other[::-1]) for other in others)
    return Reading(ids, start, max(len(ids) - tail, start + 1))


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.model_dump() for message in messages]


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
