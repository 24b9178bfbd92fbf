"""Documents as fixed-length rows of tokens, packed without cutting, and the attention mask that keeps them apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pilothouse.harbor.corpus import BEGIN, SPECIAL_TOKENS, Document

LENGTH = 256
_PENDING = 64
_BATCH = 2000

Encoded = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Rows:
    """Packed documents: `tokens` [rows, LENGTH] uint16 and `learn` [rows, LENGTH] bool (is this token a target?)."""

    tokens: NDArray[np.uint16]
    learn: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Write both arrays into one npz file."""
        np.savez(path, tokens=self.tokens, learn=self.learn)

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["tokens"], arrays["learn"])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield batch


def _encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[Encoded]:
    for batch in _batches(documents):
        texts = [piece.text for document in batch for piece in document]
        encoded = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
        for document in batch:
            ids: list[int] = []
            learn: list[bool] = []
            for piece in document:
                part = next(encoded).ids
                ids += part
                learn += [piece.learn] * len(part)
            yield ids[:LENGTH], learn[:LENGTH]


def _packed(encoded: Iterator[Encoded]) -> Iterator[list[Encoded]]:
    """Fill each row with the oldest pending document and then, again and again, the longest that still fits."""
    pending = list(itertools.islice(encoded, _PENDING))
    while pending:
        row = [pending.pop(0)]
        room = LENGTH - len(row[0][0])
        while fitting := [i for i, (ids, _) in enumerate(pending) if len(ids) <= room]:
            row.append(pending.pop(max(fitting, key=lambda i: len(pending[i][0]))))
            room -= len(row[-1][0])
        pending += itertools.islice(encoded, _PENDING - len(pending))
        yield row


def pack(tokenizer: Tokenizer, documents: Iterable[Document], rows: int) -> Rows:
    """Encode and pack documents until `rows` rows are full; padding is never a target."""
    pad = SPECIAL_TOKENS.index("<|pad|>")
    tokens = np.full((rows, LENGTH), pad, dtype=np.uint16)
    learn = np.zeros((rows, LENGTH), dtype=np.bool_)
    count = 0
    for row, parts in zip(range(rows), _packed(_encode(tokenizer, documents)), strict=False):
        ids = list(itertools.chain.from_iterable(part for part, _ in parts))
        tokens[row, : len(ids)] = ids
        learn[row, : len(ids)] = list(itertools.chain.from_iterable(flags for _, flags in parts))
        count += 1
    return Rows(tokens[:count], learn[:count])


def block_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Causal attention within each document: tokens [batch, n] int64 to bool [batch, 1, n, n]."""
    document = (tokens == SPECIAL_TOKENS.index(BEGIN)).cumsum(dim=1)
    same = document[:, None, :, None] == document[:, None, None, :]
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()
    return same & causal
