"""What was read of pairs is kept batch by batch, and a run that was stopped goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering import ContrastPair, Extraction, ReadWork, Recipe, extract_vector, extraction_key
from pilothouse.steering.reading import read_streams

MakeSource = Callable[..., Any]
DIRECTIONS = {0: np.array([1, 0, 0, 0], dtype=np.float32), 2: np.array([0, 3, 0, -4], dtype=np.float32)}
PAIRS = [ContrastPair(positive=f"{i} is{'!' * (i % 5)} so+", negative=f"{i} is not-", topic="t") for i in range(60)]
RECIPE = Recipe("pca", "mean")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "v.extract"


def run(
    source: Any, folder: Path, recipe: Recipe = RECIPE, weights: Mapping[str, str] | None = None, resume: bool = True
) -> Extraction:
    made_from, held_out = PAIRS[:40], PAIRS[40:]
    work = ReadWork.open(folder, extraction_key(source, made_from, held_out, recipe, weights or {}), resume)
    return extract_vector(source, made_from, name="v", recipe=recipe, held_out=held_out, work=work)


def stop_after(source: Any, batches: int) -> Any:
    """`source`, on which the user presses Ctrl-C in the batch after so many."""
    read, left = source.read, [batches]

    def reading(prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Float32]]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return list(read(prompts, layers))

    source.read = reading
    return source


def test_rows_and_norms_are_those_of_each_item_by_hand(make_source: MakeSource) -> None:
    source = make_source(DIRECTIONS, noise=1.0)
    streams = read_streams(source, PAIRS, "mean", (0, 2))
    items = [text for pair in PAIRS for text in (pair.positive, pair.negative)]
    for i in (0, 1, 17, 118, 119):
        for k, layer in enumerate((0, 2)):
            stream = source.stream(source.encode(items[i]), layer)[1:].astype(np.float64)
            np.testing.assert_allclose(streams.rows[i, k], stream.mean(axis=0), rtol=1e-6)
            assert streams.norms[i, k] == pytest.approx(np.linalg.norm(stream, axis=1).sum())
            assert streams.counts[i] == len(stream)


def test_a_run_that_was_stopped_reads_only_what_is_missing(make_source: MakeSource, folder: Path) -> None:
    whole = run(make_source(DIRECTIONS, noise=1.0), folder.with_name("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(stop_after(make_source(DIRECTIONS, noise=1.0), 2), folder)
    # Killed while it wrote: what has no final name is not looked at.
    (folder / "00000048.partial").write_bytes(b"half")
    second = make_source(DIRECTIONS, noise=1.0)
    resumed = run(second, folder)
    assert sum(second.batch_sizes) == 120 - 16 - 32
    assert resumed.vector.digest == whole.vector.digest
    assert resumed.vector.resid_norm == whole.vector.resid_norm
    assert resumed.items == whole.items
    # Another method of the same reading needs no model at all; starting over needs it for everything.
    third, fourth = make_source(DIRECTIONS, noise=1.0), make_source(DIRECTIONS, noise=1.0)
    assert run(third, folder, Recipe("logistic", "mean")).vector.method == "logistic"
    assert third.batch_sizes == []
    run(fourth, folder, resume=False)
    assert sum(fourth.batch_sizes) == 120


@pytest.mark.parametrize(
    ("recipe", "weights", "what"),
    [
        (Recipe("pca", "last"), {}, "token"),
        (Recipe("pca", "mean", layers=[2]), {}, "layers"),
        (RECIPE, {"dtype": "bfloat16"}, "weights"),
    ],
)
def test_another_run_is_not_taken_for_this_one(
    make_source: MakeSource, folder: Path, recipe: Recipe, weights: dict[str, str], what: str
) -> None:
    run(make_source(DIRECTIONS), folder)
    before = sorted(path.read_bytes() for path in folder.iterdir())
    with pytest.raises(ArtefactError, match=f"another {what}: .*--no-resume"):
        run(make_source(DIRECTIONS), folder, recipe, weights)
    assert sorted(path.read_bytes() for path in folder.iterdir()) == before


def test_a_run_that_kept_nothing_binds_no_other(make_source: MakeSource, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(stop_after(make_source(DIRECTIONS), 0), folder)
    assert run(make_source(DIRECTIONS), folder, Recipe(token="last")).vector.card["token"] == "last"


def test_a_folder_of_something_else_is_left_alone(make_source: MakeSource, folder: Path) -> None:
    folder.mkdir()
    (folder / "precious.safetensors").write_bytes(b"mine")
    for resume in (True, False):
        with pytest.raises(ArtefactError, match="not the work folder"):
            run(make_source(DIRECTIONS), folder, resume=resume)
    assert (folder / "precious.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(("file", "content"), [("key.json", b"[]"), ("key.json", b"{"), ("00000016.safetensors", b"x")])
def test_what_was_damaged_is_refused(make_source: MakeSource, folder: Path, file: str, content: bytes) -> None:
    run(make_source(DIRECTIONS), folder)
    (folder / file).write_bytes(content)
    with pytest.raises(ArtefactError, match=f"{file}.*--no-resume"):
        run(make_source(DIRECTIONS), folder)
    run(make_source(DIRECTIONS), folder, resume=False)


def test_a_finished_run_leaves_nothing(make_source: MakeSource, folder: Path) -> None:
    run(make_source(DIRECTIONS), folder)
    ReadWork(folder).remove()
    assert not folder.exists()


def test_every_pair_is_reported_with_its_projections(make_source: MakeSource, folder: Path) -> None:
    source = make_source(DIRECTIONS, noise=1.0)
    found = extract_vector(source, PAIRS[:40], name="v", held_out=PAIRS[40:])
    assert [item["held_out"] for item in found.items] == [False] * 40 + [True] * 20
    for item, pair in zip(found.items, PAIRS, strict=True):
        assert (item["positive"], item["negative"], item["topic"]) == (pair.positive, pair.negative, "t")
        assert sorted(item["projections"]) == ["0", "2"]
    row = found.vector.direction.layers[2].astype(np.float64)
    for text, projection in zip(("positive", "negative"), found.items[50]["projections"]["2"], strict=True):
        last = source.stream(source.encode(getattr(PAIRS[50], text)), 2)[-1]
        assert projection == pytest.approx(last @ row / np.linalg.norm(row), rel=1e-5)
    best = extract_vector(source, PAIRS[:40], name="v", recipe=Recipe(best=True), held_out=PAIRS[40:])
    # Only the best layer is in the vector, all that were read are in the report.
    assert best.items == found.items
    assert len(best.vector.direction.layers) == 1
