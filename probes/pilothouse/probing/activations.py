"""What a probe is trained and judged on: the stream at each item's chosen tokens, and logits over its tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Reading, read_item
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import Float32
from pilothouse.probing.activation_cache import ActivationCache, Arrays
from pilothouse.probing.aggregation import Float64, ProbeStats, support
from pilothouse.probing.fitting import Samples
from pilothouse.probing.probe import Probe
from pilothouse.probing.statements import LabelledItem
from pilothouse.probing.tokens import token_labels

BATCH_ITEMS, BATCH_TOKENS = 16, 2048
"""What is read at once, a longer item alone. Few enough tokens that a batch takes less than a minute on a CPU with a
model of some billion parameters, since so much is lost by Ctrl-C, and that its streams at all layers fit in memory."""

Token = Literal["last", "mean", "online", "prompt_end", "spans"]
"""The tokens that stand for an item in training: one of them, the mean of them, or each that its spans label; online:
those that the probe's aggregate rests on, with their weights in it."""

# The rows that an item gives: which tokens [start, stop) each is the mean of, and its label.
_Rows = list[tuple[int, int, int]]
_Streams = Sequence[Mapping[int, Float32]]


@dataclass(frozen=True)
class ItemReader:
    """Reads items in batches through a source, or from the cache, and tells `advance` how many it has read."""

    source: ActivationSource
    advance: Callable[[int], None]
    cache: ActivationCache | None = None

    def samples(self, items: Sequence[LabelledItem], layers: Sequence[int], token: Token) -> Samples:
        """The stream of `items` at `layers` and `token` (see `Reading` for which tokens count), with labels.

        Which tokens matter online only a probe can say: until there is one, the mean of all stands for them.
        ArtefactError where the stream is not finite, and where an item's tokens cannot be told.
        """
        parts: list[Arrays] = []
        labels: list[int] = []
        owners: list[int] = []
        read = 0
        for batch, readings in self._batches(items):
            rows = [self._rows(item, reading, token) for item, reading in zip(batch, readings, strict=True)]
            key = {"kind": "rows", "rows": [[row[:2] for row in of_item] for of_item in rows]}
            parts.append(self._read(readings, layers, key, partial(_means, rows=rows, layers=layers)))
            labels += [label for of_item in rows for _, _, label in of_item]
            owners += [read + i for i, of_item in enumerate(rows) for _ in of_item]
            read += len(batch)
            self.advance(len(batch))
        return self._samples(items, layers, parts, labels, owners)

    def online(self, items: Sequence[LabelledItem], probes: Sequence[Probe]) -> Samples:
        """A row an item: the average of its stream by which its aggregate comes about, as each probe sees it at its own
        layers, no layer being of two probes. ArtefactError where the stream is not finite."""
        layers = sorted(layer for probe in probes for layer in probe.weights)
        asked = [[probe.direction.digest.hex(), probe.aggregate, probe.alarm] for probe in probes]
        parts: list[Arrays] = []
        for batch, readings in self._batches(items):
            key = {"kind": "online", "probes": asked}
            parts.append(self._read(readings, layers, key, partial(_supports, readings=readings, probes=probes)))
            self.advance(len(batch))
        return self._samples(items, layers, parts, [item.label for item in items], range(len(items)))

    def stats(self, items: Sequence[LabelledItem], probes: Sequence[Probe]) -> list[list[ProbeStats]]:
        """By probe, each item's statistics, as if its tokens had just been generated; all of it in one reading."""
        layers = sorted({layer for probe in probes for layer in probe.weights})
        key = {"kind": "readouts", "directions": [probe.direction.digest.hex() for probe in probes]}
        found: list[list[ProbeStats]] = [[] for _ in probes]
        for batch, readings in self._batches(items):
            raw = self._read(readings, layers, key, partial(_readouts, probes=probes))["raw"]
            ends = np.cumsum([len(reading.token_ids) for reading in readings])
            for item, reading, end in zip(batch, readings, ends, strict=True):
                of_item = raw[end - len(reading.token_ids) : end]
                for k, probe in enumerate(probes):
                    logits = probe.logits(of_item[:, k])
                    end_of_prompt = float(logits[_prompt_end(item, reading)])
                    found[k].append(probe.stats(logits[reading.start : reading.stop], end_of_prompt))
            self.advance(len(batch))
        return found

    def _batches(self, items: Sequence[LabelledItem]) -> Iterator[tuple[list[LabelledItem], list[Reading]]]:
        batch: list[LabelledItem] = []
        readings: list[Reading] = []
        n_tokens = 0
        for item in items:
            reading = read_item(self.source, item.item)
            n_tokens += len(reading.token_ids)
            if batch and (len(batch) == BATCH_ITEMS or n_tokens > BATCH_TOKENS):
                yield batch, readings
                batch, readings, n_tokens = [], [], len(reading.token_ids)
            batch.append(item)
            readings.append(reading)
        if batch:
            yield batch, readings

    def _read(
        self,
        readings: Sequence[Reading],
        layers: Sequence[int],
        key: Mapping[str, Any],
        reduce: Callable[[_Streams], Arrays],
    ) -> Arrays:
        """What `reduce` makes of the streams of a batch, which are too large to keep."""
        prompts = [reading.token_ids for reading in readings]
        if self.cache is None:
            return reduce(self.source.read(prompts, layers))
        whole_key = {**key, "layers": list(layers), "prompts": prompts}
        return self.cache.arrays(whole_key, lambda: reduce(self.source.read(prompts, layers)))

    def _rows(self, item: LabelledItem, reading: Reading, token: Token) -> _Rows:
        match token:
            case "spans":
                labels = token_labels(self.source, item, reading) if item.spans else {}
                return [(position, position + 1, label) for position, label in labels.items()]
            case "mean" | "online":
                return [(reading.start, reading.stop, item.label)]
            case "last" | "prompt_end":
                last = reading.stop - 1 if token == "last" else _prompt_end(item, reading)
                return [(last, last + 1, item.label)]

    def _samples(
        self,
        items: Sequence[LabelledItem],
        layers: Sequence[int],
        parts: Sequence[Arrays],
        labels: Sequence[int],
        owners: Sequence[int],
    ) -> Samples:
        features = {layer: self._stack([part[f"layer.{layer}"] for part in parts]) for layer in layers}
        if not all(np.isfinite(of_layer).all() for of_layer in features.values()):
            raise ArtefactError("the model's stream holds NaN or infinite numbers on these items")
        topics = tuple(items[i].topic for i in owners)
        return Samples(features, np.array(labels, dtype=np.int64), np.array(owners, dtype=np.int64), topics)

    def _stack(self, parts: Sequence[Float32]) -> Float32:
        return np.concatenate([np.empty((0, self.source.shape.d_model), dtype=np.float32), *parts])


def aggregated(probe: Probe, stats: Sequence[ProbeStats]) -> Float64:
    """Each item's logit after the probe's aggregation [items]; ArtefactError where the stream was not finite."""
    logits = np.array([getattr(of_item, probe.aggregate) for of_item in stats], dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ArtefactError("the model's stream holds NaN or infinite numbers on these items")
    return logits


def readout(streams: Mapping[int, Float32], rows: Mapping[int, Float32]) -> Float32:
    """What the engine reads: the sum over layers of streams[L] [n, d_model] . rows[L] [d_model], as [n]."""
    total: Float32 = np.sum([streams[layer] @ row for layer, row in rows.items()], axis=0, dtype=np.float32)
    return total


def _means(streams: _Streams, rows: Sequence[_Rows], layers: Sequence[int]) -> Arrays:
    found = {}
    for layer in layers:
        means = [
            stream[layer][start:stop].mean(axis=0, dtype=np.float64).astype(np.float32)
            for stream, of_item in zip(streams, rows, strict=True)
            for start, stop, _ in of_item
        ]
        width = next(iter(streams))[layer].shape[1]
        found[f"layer.{layer}"] = np.array(means, dtype=np.float32).reshape(-1, width)
    return found


def _supports(streams: _Streams, readings: Sequence[Reading], probes: Sequence[Probe]) -> Arrays:
    """``layer.{L}`` [items, d_model] for the layers of all probes."""
    found: dict[str, list[Float32]] = {f"layer.{layer}": [] for probe in probes for layer in probe.weights}
    for stream, reading in zip(streams, readings, strict=True):
        scored = slice(reading.start, reading.stop)
        for probe in probes:
            logits = probe.logits(readout(stream, probe.direction.layers)[scored]).astype(np.float64)
            weights = support(logits, probe.aggregate, probe.alarm)
            for layer in probe.weights:
                found[f"layer.{layer}"].append((weights @ stream[layer][scored]).astype(np.float32))
    return {name: np.stack(rows) for name, rows in found.items()}


def _readouts(streams: _Streams, probes: Sequence[Probe]) -> Arrays:
    """`raw` [tokens of all items, probes]."""
    columns = [np.concatenate([readout(stream, probe.direction.layers) for stream in streams]) for probe in probes]
    return {"raw": np.stack(columns, axis=1)}


def _prompt_end(item: LabelledItem, reading: Reading) -> int:
    """The last position before an answer; of an item without one, its last position: all of it is prompt."""
    return reading.start - 1 if item.answered else reading.stop - 1
