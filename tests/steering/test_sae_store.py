"""Activations kept on disk, row by row, through interruptions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae_store import KeptText, RowStore, row_chunks
from pilothouse.steering.sae_texts import SaeText

AXIS = np.array([1, 0, 0, 0], dtype=np.float32)
TEXTS = [SaeText(text="ab+" * (1 + i % 5) + str(i)) for i in range(60)]
Make = Callable[..., Any]


@pytest.fixture
def source(make_source: Make) -> Any:
    return make_source({0: AXIS, 2: 3 * AXIS}, noise=1.0)


def expected(source: Any, texts: Sequence[SaeText], layer: int = 2, context: int = 99) -> tuple[Float32, list[int]]:
    prompts = [text.token_ids(source, context) for text in texts]
    rows = np.concatenate([source.stream(prompt, layer)[1:] for prompt in prompts])
    return rows, [token for prompt in prompts for token in prompt[1:]]


def test_every_token_but_the_first_of_a_text_is_kept(tmp_path: Path, source: Any) -> None:
    store = RowStore.open(tmp_path / "w", {"a": 1}, resume=True)
    told: list[tuple[int, int]] = []
    store.fill(source, TEXTS, 2, context=8, progress=lambda *now: told.append(now))
    rows, tokens = expected(source, TEXTS, context=8)
    np.testing.assert_array_equal(store.rows, rows)
    assert store.rows.dtype == np.float32
    assert store.tokens.tolist() == tokens
    # The first position is an outlier of 1e4 in this model.
    assert store.rows.max() < 100
    assert store.complete
    assert (store.model, store.d_model, store.n_rows) == ("org/character-model", 4, len(rows))
    assert (told[0][0] < 60, told[-1]) == (True, (60, 60))
    lengths = [len(text.token_ids(source, 8)) - 1 for text in TEXTS]
    ends = np.cumsum(lengths).tolist()
    assert store.texts == [KeptText(i, end - n, end) for i, (n, end) in enumerate(zip(lengths, ends, strict=True))]


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_an_interrupted_reading_goes_on_without_reading_twice(
    tmp_path: Path, source: Any, make_source: Make, patience: int
) -> None:
    read, left = source.read, [patience]

    def impatient(prompts: Any, layers: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return read(prompts, layers)

    source.read = impatient
    store = RowStore.open(tmp_path / "w", {"a": 1}, resume=True)
    with pytest.raises(KeyboardInterrupt):
        store.fill(source, TEXTS, 2, context=99)
    # As if it had been stopped between the rows and the line that tells of them, or in the middle of that line.
    for name, rest in (("rows.bin", b"abc"), ("tokens.bin", b"abcde"), ("texts.jsonl", b'{"model": "org')):
        with (tmp_path / "w" / name).open("ab") as file:
            file.write(rest)
    again = make_source({0: AXIS, 2: 3 * AXIS}, noise=1.0)
    store = RowStore.open(tmp_path / "w", {"a": 1}, resume=True)
    assert not store.complete
    store.fill(again, TEXTS, 2, context=99)
    rows, tokens = expected(again, TEXTS)
    np.testing.assert_array_equal(store.rows, rows)
    assert store.tokens.tolist() == tokens
    assert sum(source.batch_sizes) + sum(again.batch_sizes) == 60
    assert RowStore.open(tmp_path / "w", {"a": 1}, resume=True).complete
    assert not RowStore.open(tmp_path / "w", {"a": 1}, resume=False).texts


def test_reading_stops_when_there_is_enough(tmp_path: Path, source: Any) -> None:
    store = RowStore.open(tmp_path / "w", {}, resume=True)
    store.fill(source, TEXTS, 2, context=99, most=40)
    assert store.complete
    assert 40 <= store.n_rows < len(expected(source, TEXTS)[0])
    assert sum(source.batch_sizes) == len(store.texts) == 16


def test_a_store_of_other_activations_is_refused(tmp_path: Path, source: Any) -> None:
    RowStore.open(tmp_path / "w", {"layer": 2}, resume=True).fill(source, TEXTS, 2, context=99)
    with pytest.raises(ArtefactError, match="another layer"):
        RowStore.open(tmp_path / "w", {"layer": 0}, resume=True)
    with pytest.raises(ArtefactError, match="kept_as"):
        RowStore.open(tmp_path / "w", {"layer": 2}, resume=True, kept_as="float16")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ArtefactError, match="not a work folder"):
        RowStore.open(tmp_path / "mine", {}, resume=False)
    (tmp_path / "w" / "rows.bin").write_bytes(b"")
    with pytest.raises(ArtefactError, match="shorter"):
        RowStore.open(tmp_path / "w", {"layer": 2}, resume=True)


def test_float16_halves_the_file_and_refuses_what_it_cannot_hold(tmp_path: Path, make_source: Make) -> None:
    source = make_source({0: AXIS}, noise=1.0)
    store = RowStore.open(tmp_path / "w", {}, resume=True, kept_as="float16")
    store.fill(source, TEXTS, 0, context=99)
    rows, _ = expected(source, TEXTS, layer=0)
    np.testing.assert_allclose(store.rows, rows, rtol=1e-3, atol=1e-3)
    assert (tmp_path / "w" / "rows.bin").stat().st_size == 2 * rows.size
    with pytest.raises(ArtefactError, match="not finite as float16"):
        RowStore.open(tmp_path / "x", {}, resume=True, kept_as="float16").fill(
            make_source({0: 1e5 * AXIS}), TEXTS, 0, context=99
        )


def test_layers_without_a_site_and_texts_without_tokens_are_refused(tmp_path: Path, source: Any) -> None:
    store = RowStore.open(tmp_path / "w", {}, resume=True)
    for layer in (-1, 1, 7):
        with pytest.raises(ArtefactError, match=f"layer {layer} has no site: the model's layers are 0 to 2"):
            store.fill(source, TEXTS, layer, context=99)
    source.encode = lambda item, add_generation_prompt=False: [1]
    with pytest.raises(ArtefactError, match="nothing to read"):
        store.fill(source, TEXTS, 2, context=99)
    assert source.batch_sizes == []


def test_chunks_are_whole_texts(tmp_path: Path, source: Any) -> None:
    store = RowStore.open(tmp_path / "w", {}, resume=True)
    store.fill(source, TEXTS, 2, context=99)
    chunks = list(row_chunks(store, 50))
    assert [text for _, chunk in chunks for text in chunk] == store.texts
    assert [first for first, _ in chunks] == np.cumsum([0, *(len(chunk) for _, chunk in chunks)])[:-1].tolist()
    assert all(50 <= chunk[-1].stop - chunk[0].start < 70 for _, chunk in chunks[:-1])
