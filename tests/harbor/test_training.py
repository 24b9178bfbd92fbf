"""Training in courses: their rates and rows, and a run that is stopped and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pilothouse.harbor.corpus import documents, judgements
from pilothouse.harbor.packing import Rows, pack
from pilothouse.harbor.tokenizer import train_tokenizer
from pilothouse.harbor.train import Course, Recipe, Training

RECIPE = Recipe((Course(3, 1e-3, 2, 2), Course(2, 5e-4, 1, 1)), batch=2)


@pytest.fixture(scope="module")
def rows() -> list[Rows]:
    tokenizer = train_tokenizer(documents(2, 400))
    return [pack(tokenizer, corpus(1, 60), 6) for corpus in (documents, judgements)]


def _weights(training: Training) -> Iterator[np.ndarray]:
    return (weights.detach().numpy().copy() for weights in training.model.parameters())


def test_a_course_rises_stays_and_falls() -> None:
    course = Course(100, 1e-3, 10, 60)
    assert course.rate(0) == pytest.approx(1e-4)
    assert [course.rate(step) for step in (9, 30, 60)] == [1e-3] * 3
    assert course.rate(80) == pytest.approx(1e-3 * (0.01 + 0.99 / 2))
    assert course.rate(99) < 0.04e-3
    assert course.shortened(0.1) == Course(10, 1e-3, 1, 6)
    assert course.shortened(1e-6).rate(0) > 0


def test_steps_are_counted_through_all_courses() -> None:
    assert RECIPE.steps == 5
    assert [RECIPE.place(step) for step in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(rows: list[Rows], tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = Training(RECIPE, rows, tmp_path / "whole")
    assert list(whole.run()) == [1, 2, 3, 4, 5]
    stopped = Training(RECIPE, rows, tmp_path / "stopped")
    run = stopped.run()
    assert list(islice(run, 2)) == [1, 2]
    run.close()
    resumed = Training(RECIPE, rows, tmp_path / "stopped")
    assert list(resumed.run()) == [3, 4, 5]
    untrained = Training(RECIPE, rows, tmp_path)
    for expected, found, before in zip(_weights(whole), _weights(resumed), _weights(untrained), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert not np.array_equal(found, before)
