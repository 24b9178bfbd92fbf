"""The stream of contrast pairs, read through a model's sites: one row an item and layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pilothouse.core.items import Item, read_item
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import Float32
from pilothouse.steering.pace import Pace
from pilothouse.steering.pairs import ContrastPair
from pilothouse.steering.read_work import ReadWork
from pilothouse.steering.sweep import Sides
from pilothouse.steering.tokens import Token, chosen_tokens

MOST_AT_ONCE = 64
"""Items; each comes with its whole stream, [tokens, d_model] float32 a layer."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Streams:
    """What was read of pairs at `layers`; items are the pairs' positives and negatives in turn.

    rows [items, layers, d_model] float32: the mean stream over an item's chosen tokens; norms [items, layers] float64:
    the sum of the stream's L2 norms at them; counts [items]: how many they are.
    """

    layers: tuple[int, ...]
    rows: Float32
    norms: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    def sides(self, layer: int) -> Sides:
        """The two sides of every pair at one layer."""
        rows = self.rows[:, self.layers.index(layer)]
        return Sides(rows[::2], rows[1::2])

    def mean_norm(self, layer: int, n_pairs: int) -> float:
        """Mean L2 norm of the stream over the chosen tokens of the first `n_pairs` pairs."""
        total = self.norms[: 2 * n_pairs, self.layers.index(layer)].sum()
        return float(total / self.counts[: 2 * n_pairs].sum())


def read_streams(
    source: ActivationSource,
    pairs: Sequence[ContrastPair],
    token: Token,
    layers: tuple[int, ...],
    work: ReadWork | None = None,
    progress: Progress | None = None,
) -> Streams:
    """Read `pairs` but for what `work` holds of them, and keep there what is read.

    `progress` is called with items done and in all. ArtefactError for an item that is too short for `token`.
    """
    items = list(_items(pairs))
    rows = np.empty((len(items), len(layers), source.shape.d_model), dtype=np.float32)
    norms, counts = np.empty(rows.shape[:2]), np.empty(len(items), dtype=np.int64)
    done = 0

    def add(batch: tuple[Float32, npt.NDArray[np.float64], npt.NDArray[np.int64]]) -> None:
        nonlocal done
        stop = done + len(batch[0])
        rows[done:stop], norms[done:stop], counts[done:stop] = batch
        done = stop
        if progress:
            progress(done, len(items))

    for held in work.batches() if work else ():
        add((held["rows"], held["norms"], held["counts"]))
    pace = Pace(MOST_AT_ONCE)
    while done < len(items):
        with pace.timed():
            batch = _read(source, items[done : done + pace.size], token, layers)
        if work:
            work.keep(done, dict(zip(("rows", "norms", "counts"), batch, strict=True)))
        add(batch)
    return Streams(layers, rows, norms, counts)


def _items(pairs: Sequence[ContrastPair]) -> Iterator[tuple[Item, str]]:
    for number, pair in enumerate(pairs, start=1):
        yield pair.positive, f"the positive item of pair {number}"
        yield pair.negative, f"the negative item of pair {number}"


def _read(
    source: ActivationSource, items: Sequence[tuple[Item, str]], token: Token, layers: tuple[int, ...]
) -> tuple[Float32, npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """rows, norms and counts of some items, as `Streams` has them."""
    readings = [read_item(source, item) for item, _ in items]
    chosen = [chosen_tokens(reading, item, token, what) for reading, (item, what) in zip(readings, items, strict=True)]
    rows = np.empty((len(items), len(layers), source.shape.d_model), dtype=np.float32)
    norms = np.empty(rows.shape[:2])
    for i, stream in enumerate(source.read([reading.token_ids for reading in readings], layers)):
        for k, layer in enumerate(layers):
            # In float64: the order of many small terms must not show.
            wide = stream[layer][chosen[i]].astype(np.float64)
            rows[i, k] = wide.mean(axis=0)
            norms[i, k] = np.linalg.norm(wide, axis=1).sum()
    return rows, norms, np.array([place.stop - place.start for place in chosen], dtype=np.int64)
