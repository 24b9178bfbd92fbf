"""Labelled items to train and evaluate probes on, from JSONL or from CSV files in the layout of Geometry of Truth."""

import csv
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pilothouse.core.artefact import first_problem
from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item, Message, read_jsonl

Split = Literal["train", "select", "calibrate", "eval"]


class LabelledItem(BaseModel):
    """A text or a chat, and whether the probe's label holds of it (1) or not (0).

    split: what the item is for, training when not given; topic: groups that are centred on their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None
    label: Literal[0, 1]
    topic: str | None = None
    split: Split | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("an item needs either text or messages")
        return self

    @property
    def item(self) -> Item:
        """The text or the chat."""
        item = self.text if self.messages is None else self.messages
        assert item is not None
        return item


def load_statements(path: Path) -> list[LabelledItem]:
    """The items of a ``.csv`` file (columns `statement` and `label`) or of a JSONL file, one a line.

    A CSV file is a topic of its own, called like the file. ArtefactError names the line that is wrong.
    """
    return _load_csv(path) if path.suffix.lower() == ".csv" else read_jsonl(path, LabelledItem)


def _load_csv(path: Path) -> list[LabelledItem]:
    found: list[LabelledItem] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if missing := {"statement", "label"} - set(table.fieldnames or ()):
                raise ArtefactError(f"{path} has no column {min(missing)!r}")
            for row in table:
                label = {"0": 0, "1": 1}.get((row["label"] or "").strip(), row["label"])
                try:
                    found.append(
                        LabelledItem.model_validate({"text": row["statement"], "label": label, "topic": path.stem})
                    )
                except ValidationError as error:
                    raise ArtefactError(f"{path}, line {table.line_num}: {first_problem(error)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    if not found:
        raise ArtefactError(f"{path} has no items")
    return found
