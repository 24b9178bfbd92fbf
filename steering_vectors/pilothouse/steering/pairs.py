"""Contrast pairs: two items that differ in what a vector is to mean."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pilothouse.core.items import Item, read_jsonl


class ContrastPair(BaseModel):
    """One line of a JSONL file; the vector will point from `negative` to `positive`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: Item
    negative: Item
    topic: str | None = None
    split: str | None = None


def load_pairs(path: Path) -> list[ContrastPair]:
    """The pairs of a JSONL file, one a line; ArtefactError names the line that is wrong."""
    return read_jsonl(path, ContrastPair)


def digest_pairs(pairs: Sequence[ContrastPair]) -> str:
    """``sha256:`` over the pairs in order: the identity of a data set, however its file was formatted."""
    sha = hashlib.sha256()
    for pair in pairs:
        sha.update(pair.model_dump_json().encode() + b"\n")
    return f"sha256:{sha.hexdigest()}"
