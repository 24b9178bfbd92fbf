"""The bootstrap of the AUROC against draws made one by one."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pilothouse.probing.bootstrap import DRAWS, auroc_interval, clusters


def data(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, n)
    return np.round(rng.normal(size=n) + labels, 1), labels


def test_the_interval_is_that_of_draws_made_one_by_one() -> None:
    scores, labels = data()
    of_item = np.arange(60) // 3
    found = auroc_interval(scores, labels, "group", of_item, seed=5)
    rng = np.random.default_rng(6)
    areas = []
    for _ in range(DRAWS):
        drawn = np.concatenate([np.flatnonzero(of_item == unit) for unit in rng.integers(0, 20, 20)])
        if set(labels[drawn]) == {0, 1}:
            areas.append(roc_auc_score(labels[drawn], scores[drawn]))
    assert found is not None
    assert (found.unit, found.n_units) == ("group", 20)
    assert [found.low, found.high] == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.02)


def test_one_unit_drawn_over_and_over_has_no_spread() -> None:
    scores, labels = data()
    area = float(roc_auc_score(labels, scores))
    found = auroc_interval(scores, labels, "group", np.zeros(60, dtype=np.int64), seed=0)
    assert found is not None
    assert [found.low, found.high] == pytest.approx([area, area])
    assert (found.unit, found.n_units) == ("group", 1)


def test_wordings_of_one_fact_do_not_make_the_interval_narrower() -> None:
    scores, labels = data(40)
    ten_wordings = np.repeat(np.arange(40), 10)
    once = auroc_interval(scores, labels, "item", np.arange(40), seed=0)
    by_group = auroc_interval(scores.repeat(10), labels.repeat(10), "group", ten_wordings, seed=0)
    by_item = auroc_interval(scores.repeat(10), labels.repeat(10), "item", np.arange(400), seed=0)
    assert once is not None
    assert by_group is not None
    assert by_item is not None
    assert (by_group.low, by_group.high) == pytest.approx((once.low, once.high))
    assert by_item.high - by_item.low < 0.5 * (by_group.high - by_group.low)


def test_too_few_draws_with_both_labels_give_no_interval() -> None:
    # Of two units every other draw holds both, of three with one lonely label two in three.
    assert auroc_interval(np.array([0.1, 0.2]), np.array([0, 1]), "item", np.array([0, 1]), seed=0) is None
    assert auroc_interval(np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1]), "item", np.arange(3), seed=0) is not None


def test_groups_are_drawn_where_they_exist_else_topics_else_items() -> None:
    words = [f"w{i}" for i in range(6)]
    unit, found = clusters(["a", "a", "b", None, None, "b"], ["t"] * 6, words)
    assert unit == "group"
    assert found[0] == found[1] != found[2] == found[5]
    assert len(set(found.tolist())) == 4
    unit, found = clusters([None] * 6, ["p", "q", "r", "s", "t", "p"], words)
    assert unit == "topic"
    assert len(set(found.tolist())) == 5
    assert clusters([None] * 6, ["p", "q", "p", "q", "p", "q"], words)[0] == "item"
    assert clusters([None] * 6, ["p", "q", "r", "s", "t", None], words)[0] == "item"
    unit, found = clusters([None] * 3, [None] * 3, ["same", "same", "other"])
    assert (unit, len(set(found.tolist()))) == ("item", 2)
