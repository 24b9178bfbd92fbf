"""The work folder of SAE training and labelling: the stream at one layer, a row a token, kept as it is read."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from pilothouse.core.errors import ArtefactError
from pilothouse.core.serving import ActivationSource
from pilothouse.core.sites import Float32
from pilothouse.steering.pace import Pace
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_texts import SaeText
from pilothouse.steering.unfinished import require_same_key, write_key

KeptAs = Literal["float32", "float16"]

MOST_TEXTS = 256
MOST_BYTES = 1 << 30
"""Of one batch of the model, whose sites hand out their streams at all layers."""


@dataclass(frozen=True)
class KeptText:
    """Rows [start, stop) are the tokens of text `number`, without its first."""

    number: int
    start: int
    stop: int


class RowStore:
    """``rows.bin`` [tokens, d_model], ``tokens.bin`` [tokens] int32 (the ids) and ``texts.jsonl``, a line a batch.

    The first position of a text is left out: it is BOS, or the attention sink that stands in for it.
    """

    def __init__(self, folder: Path, kept_as: KeptAs) -> None:
        self.folder = folder
        self.kept_as = kept_as
        self.model = ""
        self.d_model = 0
        self.texts: list[KeptText] = []
        self.complete = False

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, Any], resume: bool, kept_as: KeptAs = "float32") -> Self:
        """What `folder` holds, or an empty store in its place unless `resume`; ArtefactError when it holds rows of
        another `key` (JSON: what is read, from which model), or is no such folder."""
        wanted = {**key, "kept_as": kept_as}
        store, card = cls(folder, kept_as), folder / "key.json"
        if folder.exists() and not card.is_file():
            raise ArtefactError(f"{folder} is not a work folder of activations")
        if resume and folder.exists():
            require_same_key(card, wanted)
            store._recover()
            return store
        store.remove()
        folder.mkdir(parents=True)
        write_key(card, wanted)
        return store

    @property
    def n_rows(self) -> int:
        return self.texts[-1].stop if self.texts else 0

    @property
    def rows(self) -> npt.NDArray[Any]:
        """[n_rows, d_model] of the stored type, mapped from the file."""
        return np.memmap(self._rows_file, dtype=self.kept_as, mode="r", shape=(self.n_rows, self.d_model))

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """The token id of each row, mapped from the file."""
        return np.memmap(self._tokens_file, dtype=np.int32, mode="r", shape=(self.n_rows,))

    def fill(
        self,
        source: ActivationSource,
        texts: Sequence[SaeText],
        layer: int,
        context: int,
        most: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Read what is missing of `texts` at `layer`, at most `context` tokens a text and about `most` in all.

        `progress` is called with texts done and in all. ArtefactError for a layer without a site, for activations that
        are not finite, and when nothing was read.
        """
        check_layer(source, layer)
        self.model, self.d_model = source.shape.model, source.shape.d_model
        done, pace = self._n_tried, Pace(MOST_TEXTS)
        while done < len(texts) and (most is None or self.n_rows < most):
            with pace.timed():
                done += self._keep(source, texts, done, layer, context, pace.size)
            if progress:
                progress(done, len(texts))
        if not self.n_rows:
            raise ArtefactError("nothing to read: the texts have one token each, or none")
        if progress:
            progress(len(texts), len(texts))
        self._write_line({"complete": True})
        self.complete = True

    def remove(self) -> None:
        """Delete the folder: the run that it was for is complete, or begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(
        self, source: ActivationSource, texts: Sequence[SaeText], first: int, layer: int, context: int, size: int
    ) -> int:
        """Read and keep some texts from number `first` on; returns how many."""
        prompts: dict[int, list[int]] = {}
        tried, n_tokens = 0, 0
        most_tokens = max(MOST_BYTES // (4 * self.d_model * len(source.shape.sites)), 1)
        for number in range(first, min(first + size, len(texts))):
            ids = texts[number].token_ids(source, context)
            if prompts and n_tokens + len(ids) > most_tokens:
                break
            tried, n_tokens = tried + 1, n_tokens + len(ids)
            if len(ids) > 1:
                prompts[number] = ids
        streams = source.read(list(prompts.values()), [layer]) if prompts else []
        self._append(prompts, [stream[layer] for stream in streams], first + tried)
        return tried

    def _append(self, prompts: Mapping[int, list[int]], streams: Sequence[Float32], tried: int) -> None:
        kept, lengths = [], []
        for (number, ids), stream in zip(prompts.items(), streams, strict=True):
            with np.errstate(over="ignore"):
                rows = stream[1:].astype(self.kept_as)
            if not np.isfinite(rows).all():
                raise ArtefactError(f"the stream of text {number + 1} is not finite as {self.kept_as}")
            kept.append(rows)
            lengths.append((number, len(ids) - 1))
        # The line comes last: rows without one are cut off when the folder is opened again.
        for path, arrays in (
            (self._rows_file, kept),
            (self._tokens_file, [np.array(ids[1:], dtype=np.int32) for ids in prompts.values()]),
        ):
            with path.open("ab") as file:
                for array in arrays:
                    file.write(array.tobytes())
        self._write_line({"model": self.model, "d_model": self.d_model, "tried": tried, "texts": lengths})
        self._add(lengths, tried)

    def _add(self, lengths: Sequence[Sequence[int]], tried: int) -> None:
        for number, length in lengths:
            self.texts.append(KeptText(number, self.n_rows, self.n_rows + length))
        self._n_tried = tried

    def _write_line(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "texts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _recover(self) -> None:
        """Take over what was kept, without what was cut off while it was written."""
        path = self.folder / "texts.jsonl"
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        for text in whole.splitlines():
            line = json.loads(text)
            if line.get("complete"):
                self.complete = True
            else:
                self.model, self.d_model = line["model"], line["d_model"]
                self._add(line["texts"], line["tried"])
        sizes = {self._rows_file: np.dtype(self.kept_as).itemsize * self.d_model, self._tokens_file: 4}
        for file, size in sizes.items():
            held = file.stat().st_size if file.exists() else 0
            if held < self.n_rows * size:
                raise ArtefactError(f"{file} is shorter than it was: --no-resume starts over")
            if held:
                with file.open("r+b") as opened:
                    opened.truncate(self.n_rows * size)

    _n_tried = 0

    @property
    def _rows_file(self) -> Path:
        return self.folder / "rows.bin"

    @property
    def _tokens_file(self) -> Path:
        return self.folder / "tokens.bin"


def check_layer(source: ActivationSource, layer: int) -> None:
    """ArtefactError unless the model has a site at `layer`."""
    if layer not in source.shape.sites:
        raise ArtefactError(
            f"layer {layer} has no site: the model's layers are 0 to {source.shape.n_layers - 1}, those with a site "
            f"{', '.join(map(str, source.shape.sites))}"
        )


def row_chunks(store: RowStore, size: int) -> Iterator[tuple[int, list[KeptText]]]:
    """Consecutive whole texts of about `size` rows together, and the number of the first of them."""
    chunk: list[KeptText] = []
    for number, text in enumerate(store.texts):
        chunk.append(text)
        if chunk[-1].stop - chunk[0].start >= size or number == len(store.texts) - 1:
            yield number + 1 - len(chunk), chunk
            chunk = []
