"""Splits by group and by topic, drawn once."""

from pathlib import Path

import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import LabelledItem, load_statements
from pilothouse.probing.splits import Splits, split_items, splits_of_training, with_splits
from pilothouse.probing.statements import digest_items, write_statements


def facts() -> list[LabelledItem]:
    """Forty facts of ten topics, each stated truly and falsely in two wordings."""
    return [
        LabelledItem(text=f"fact {k} {wording} {label}", label=label, topic=f"t{k % 10}", group=f"f{k}")
        for k in range(40)
        for wording in "ab"
        for label in (0, 1)
    ]


def of_splits(splits: Splits, items: list[LabelledItem], key: str) -> list[set[str]]:
    return [{getattr(items[i], key) for i in indices} for indices in splits.by_name.values()]


@pytest.mark.parametrize(("by", "key"), [("group", "group"), ("topic", "topic")])
def test_what_is_kept_together_is_in_one_split_only(by: str, key: str) -> None:
    items = facts()
    splits = split_items(items, 0, choosing=True, by=by)  # type: ignore[arg-type]
    found = of_splits(splits, items, key)
    assert sum(map(len, found)) == len(set().union(*found)) == len({getattr(item, key) for item in items})
    assert sorted(i for indices in splits.by_name.values() for i in indices) == list(range(160))
    assert all(found)


def test_by_group_topics_are_shared_and_by_topic_they_are_not() -> None:
    items = facts()
    by_group = of_splits(split_items(items, 0, choosing=False), items, "topic")
    by_topic = of_splits(split_items(items, 0, choosing=False, by="topic"), items, "topic")
    assert by_group[0] & by_group[3]
    assert not by_topic[0] & by_topic[3]


def test_a_group_in_two_topics_cannot_be_split_by_topic() -> None:
    items = [item.model_copy(update={"group": "the same"}) for item in facts()]
    with pytest.raises(ArtefactError, match="'the same' is in two splits"):
        split_items(items, 0, choosing=False, by="topic")


def test_the_same_words_in_two_named_splits_are_refused() -> None:
    items = [*facts(), facts()[0].model_copy(update={"split": "eval"})]
    with pytest.raises(ArtefactError, match="two splits: train and eval"):
        split_items(items, 0, choosing=False)


def test_splits_that_were_written_down_are_the_ones_that_are_used(tmp_path: Path) -> None:
    items = facts()
    splits = split_items(items, 3, choosing=True)
    write_statements(with_splits(items, splits), tmp_path / "split.jsonl")
    named = load_statements(tmp_path / "split.jsonl")
    assert [item.model_copy(update={"split": None}) for item in named] == items
    again = split_items(named, 99, choosing=True)
    for name, indices in splits.by_name.items():
        assert again.by_name[name].tolist() == indices.tolist()


def test_a_card_knows_the_splits_of_its_own_items_only() -> None:
    items = facts()
    card = {"data": digest_items(items), "seed": 4, "sweep": {"2": 0.7}, "split_by": "topic"}
    found = splits_of_training(card, items)
    assert found is not None
    assert found.eval.tolist() == split_items(items, 4, choosing=True, by="topic").eval.tolist()
    assert splits_of_training(card, items[:-1]) is None
