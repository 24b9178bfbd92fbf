"""What a probe is trained and judged on: the stream at each item's chosen token, and logits over its tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Reading, batches, read_item
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import Float32
from pilothouse.probing.aggregation import ProbeStats
from pilothouse.probing.probe import Probe
from pilothouse.probing.statements import LabelledItem

BATCH = 64
Token = Literal["last", "mean", "prompt_end"]


@dataclass(frozen=True)
class ItemReader:
    """Reads items in batches through a source and tells `advance` how many it has read."""

    source: ActivationSource
    advance: Callable[[int], None]

    def features(self, items: Sequence[LabelledItem], layers: Sequence[int], token: Token) -> dict[int, Float32]:
        """By layer, [items, d_model]: the stream at each item's `token` (see `Reading` for which tokens count).

        ArtefactError where the stream is not finite.
        """
        out = {layer: np.empty((len(items), self.source.shape.d_model), dtype=np.float32) for layer in layers}
        for i, (item, reading, stream) in enumerate(self._read(items, layers)):
            for layer, rows in out.items():
                rows[i] = _pick(stream[layer], item, reading, token)
        if not all(np.isfinite(rows).all() for rows in out.values()):
            raise ArtefactError("the model's stream holds NaN or infinite numbers on these items")
        return out

    def stats(self, items: Sequence[LabelledItem], probe: Probe) -> list[ProbeStats]:
        """Each item's statistics, as if its tokens had just been generated."""
        rows = probe.direction.layers
        found = []
        for item, reading, stream in self._read(items, tuple(rows)):
            logits = probe.logits(readout(stream, rows))
            span = logits[reading.start : reading.stop]
            found.append(probe.stats(span, float(logits[_prompt_end(item, reading)])))
        return found

    def _read(
        self, items: Sequence[LabelledItem], layers: Sequence[int]
    ) -> Iterator[tuple[LabelledItem, Reading, dict[int, Float32]]]:
        for batch in batches(items, BATCH):
            readings = [read_item(self.source, item.item) for item in batch]
            streams = self.source.read([reading.token_ids for reading in readings], layers)
            yield from zip(batch, readings, streams, strict=True)
            self.advance(len(batch))


def readout(streams: Mapping[int, Float32], rows: Mapping[int, Float32]) -> Float32:
    """What the engine reads: the sum over layers of streams[L] [n, d_model] . rows[L] [d_model], as [n]."""
    total: Float32 = np.sum([streams[layer] @ row for layer, row in rows.items()], axis=0, dtype=np.float32)
    return total


def _pick(stream: Float32, item: LabelledItem, reading: Reading, token: Token) -> Float32:
    if token == "mean":
        chosen = slice(reading.start, reading.stop)
    else:
        last = reading.stop - 1 if token == "last" else _prompt_end(item, reading)
        chosen = slice(last, last + 1)
    row: Float32 = stream[chosen].mean(axis=0, dtype=np.float64).astype(np.float32)
    return row


def _prompt_end(item: LabelledItem, reading: Reading) -> int:
    """The last position before an answer; of an item without one, its last position: all of it is prompt."""
    answered = item.messages is not None and item.messages[-1].role == "assistant"
    return reading.start - 1 if answered else reading.stop - 1
