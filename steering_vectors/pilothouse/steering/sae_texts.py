"""Texts that an SAE is trained, judged and labelled on, in JSONL files."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item, Message, read_jsonl
from pilothouse.core.serving import ActivationSource

TRAIN, HELD_OUT = "train", "eval"
HELD_OUT_SHARE = 0.1


class SaeText(BaseModel):
    """One line: ``{"text": ...}`` or ``{"messages": [...]}``, with `split` where wanted (see `split_texts`).

    Any other key whose value is a string, a whole number or a truth value (`topic`, `tone`, ...) is metadata, by which
    features can be named.
    """

    model_config = ConfigDict(extra="allow", frozen=True, ignored_types=(cached_property,))

    text: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _one_item(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("a line has either text or messages")
        return self

    @property
    def item(self) -> Item:
        item = self.messages if self.text is None else self.text
        assert item is not None
        return item

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The other keys, as text."""
        extra = self.model_extra or {}
        return {key: str(value) for key, value in sorted(extra.items()) if isinstance(value, str | int)}

    def token_ids(self, source: ActivationSource, context: int) -> list[int]:
        """The first `context` token ids, BOS included where the model has one; a chat that does not end with an answer
        is followed by the template's prompt for one."""
        if self.messages is None:
            return source.encode(self.text or "")[:context]
        chat = [message.model_dump() for message in self.messages]
        return source.encode(chat, add_generation_prompt=self.messages[-1].role != "assistant")[:context]


@dataclass(frozen=True)
class SplitTexts:
    """Texts to train on and texts to judge by; `repeated` texts of the latter were left out, being in the former."""

    train: list[SaeText]
    held_out: list[SaeText]
    repeated: int


def load_sae_texts(paths: Iterable[Path]) -> list[SaeText]:
    """The texts of JSONL files, in order; ArtefactError names the file and the line that is wrong."""
    return [text for path in paths for text in read_jsonl(path, SaeText)]


def split_texts(texts: Sequence[SaeText], seed: int) -> SplitTexts:
    """Lines with split `train` and `eval` as they say, other splits not at all; of lines without one a tenth is held
    out by the digest of its item and `seed`, and so is a tenth of `train` when nothing else is.

    Texts to train on are shuffled, so that any first part of them is like the whole. ArtefactError when a side is
    empty.
    """
    chance: dict[str | None, tuple[str, str]] = {None: (TRAIN, HELD_OUT)}
    if not any(text.split in (None, HELD_OUT) for text in texts):
        chance[TRAIN] = (TRAIN, HELD_OUT)
    sides: dict[str, list[SaeText]] = {TRAIN: [], HELD_OUT: []}
    for text in texts:
        side = chance[text.split][_share(text, seed) < HELD_OUT_SHARE] if text.split in chance else text.split
        sides.get(side or "", []).append(text)
    trained_on = {text.item for text in sides[TRAIN]}
    held_out = [text for text in sides[HELD_OUT] if text.item not in trained_on]
    for side, found in ((TRAIN, sides[TRAIN]), (HELD_OUT, held_out)):
        if not found:
            raise ArtefactError(f"no texts for split {side!r}: give more texts, or lines that name it")
    random.Random(seed).shuffle(sides[TRAIN])
    return SplitTexts(sides[TRAIN], held_out, len(sides[HELD_OUT]) - len(held_out))


def digest_texts(texts: Iterable[SaeText]) -> str:
    """``sha256:`` over the texts in order: the identity of a data set, however its file was formatted."""
    sha = hashlib.sha256()
    for text in texts:
        sha.update(json.dumps(text.model_dump(mode="json"), sort_keys=True).encode() + b"\n")
    return f"sha256:{sha.hexdigest()}"


def _share(text: SaeText, seed: int) -> float:
    """A number from 0 to 1 that depends on the item alone."""
    content = text.model_dump_json(include={"text", "messages"})
    return int.from_bytes(hashlib.sha256(f"{seed}/{content}".encode()).digest()[:8], "big") / 2**64
