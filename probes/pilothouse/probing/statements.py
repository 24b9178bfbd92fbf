"""Labelled items to train and evaluate probes on, from JSONL or from CSV files in the layout of Geometry of Truth.

`docs/datasets.md` documents both formats for their users.
"""

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pilothouse.core.artefact import first_problem
from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item, Message, read_jsonl

Split = Literal["train", "select", "calibrate", "eval"]

CSV_LABELS = {"0": 0, "1": 1, "false": 0, "true": 1}


class Span(BaseModel):
    """The characters [start, stop) of an item's `labelled_text`, and whether the probe's label holds of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Annotated[int, Field(ge=0, strict=True)]
    stop: Annotated[int, Field(strict=True)]
    label: Literal[0, 1]


class LabelledItem(BaseModel):
    """A text or a chat, and whether the probe's label holds of it (1) or not (0).

    spans: labels of parts of it, for probes that are trained by token; without a `label` it is 1 when any span's is.
    topic: groups that are centred on their own, judged on their own, and held out together. bucket: judged on their
    own. group: what must stay in one split, such as the statements about one fact. split: what the item is for,
    training when not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = None
    text: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None
    label: Literal[0, 1]
    spans: tuple[Span, ...] = ()
    topic: str | None = None
    bucket: str | None = None
    group: str | None = None
    split: Split | None = None

    @model_validator(mode="before")
    @classmethod
    def _label_from_spans(cls, data: Any) -> Any:
        if isinstance(data, dict) and "label" not in data and isinstance(data.get("spans"), list | tuple):
            labels = [span.get("label") for span in data["spans"] if isinstance(span, dict)]
            if labels:
                return {**data, "label": int(1 in labels)}
        return data

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("an item needs either text or messages")
        if self.spans and self.messages is not None and not self.answered:
            raise ValueError("the spans of a chat are parts of its answer, but its last message is not the assistant's")
        end = 0
        for span in sorted(self.spans, key=lambda span: span.start):
            if span.stop <= span.start:
                raise ValueError(f"the span from {span.start} to {span.stop} is empty")
            if span.start < end:
                raise ValueError(f"the span from {span.start} to {span.stop} begins before another one has ended")
            end = span.stop
        if end > len(self.labelled_text):
            raise ValueError(f"a span stops at {end}, but the text has {len(self.labelled_text)} characters")
        return self

    @property
    def item(self) -> Item:
        """The text or the chat."""
        item = self.text if self.messages is None else self.messages
        assert item is not None
        return item

    @property
    def answered(self) -> bool:
        """Whether it is a chat that ends with an answer."""
        return self.messages is not None and self.messages[-1].role == "assistant"

    @property
    def labelled_text(self) -> str:
        """What spans count characters of: the text, or the last message of the chat."""
        return self.text or (self.messages[-1].content if self.messages else "")

    @property
    def transcript(self) -> str:
        """All of it as plain text: for a chat, a line ``role: content`` a message."""
        return self.text or "\n".join(f"{message.role}: {message.content}" for message in self.messages or ())

    @property
    def identity(self) -> str:
        """What may be in one split only: the group, or else the very same words."""
        return f"group {self.group!r}" if self.group is not None else f"item {self.transcript!r}"


def load_statements(path: Path) -> list[LabelledItem]:
    """The items of a ``.csv`` file (columns `statement`, `label`, perhaps `topic`) or of a JSONL file, one a line.

    A CSV file without topics is a topic of its own, called like the file. ArtefactError names the line that is wrong.
    """
    return _load_csv(path) if path.suffix.lower() == ".csv" else read_jsonl(path, LabelledItem)


def write_statements(items: Sequence[LabelledItem], path: Path) -> None:
    """A JSONL file that `load_statements` reads as the same items."""
    lines = (json.dumps(item.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) for item in items)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def digest_items(items: Sequence[LabelledItem]) -> str:
    """``sha256:`` over the items in order, by which a probe knows the data that it was trained on."""
    sha = hashlib.sha256()
    for item in items:
        sha.update(item.model_dump_json(exclude_defaults=True).encode() + b"\n")
    return f"sha256:{sha.hexdigest()}"


def _load_csv(path: Path) -> list[LabelledItem]:
    found: list[LabelledItem] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if missing := {"statement", "label"} - set(table.fieldnames or ()):
                raise ArtefactError(f"{path} has no column {min(missing)!r}")
            for row in table:
                label = CSV_LABELS.get((row["label"] or "").strip().lower(), row["label"])
                topic = row.get("topic") or path.stem
                try:
                    found.append(
                        LabelledItem.model_validate({"text": row["statement"], "label": label, "topic": topic})
                    )
                except ValidationError as error:
                    raise ArtefactError(f"{path}, line {table.line_num}: {first_problem(error)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    if not found:
        raise ArtefactError(f"{path} has no items")
    return found
