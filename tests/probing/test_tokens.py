"""Labels of characters as labels of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import read_item
from pilothouse.core.sites import ModelShape
from pilothouse.probing import LabelledItem
from pilothouse.probing.tokens import token_labels


class WordSource:
    """Tokens are words with the space before them, after a BOS."""

    shape = ModelShape("words", 4, 2, (0, 1))

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        return list(range(len(self.offsets(item))))

    def offsets(self, item: str | Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
        assert isinstance(item, str)
        found, at = [(0, 0)], 0
        for word in item.split(" "):
            end = at + len(word) + (1 if at else 0)
            found.append((at, end))
            at = end
        return found

    def read(self, prompts: Any, layers: Any) -> list[Any]:
        raise AssertionError("labels need no activations")

    def close(self) -> None: ...


def labels(text: str, *spans: tuple[str, int]) -> dict[int, int]:
    made = [
        {"start": text.index(words), "stop": text.index(words) + len(words), "label": label} for words, label in spans
    ]
    item = LabelledItem.model_validate({"text": text, "spans": made})
    source = WordSource()
    return token_labels(source, item, read_item(source, item.item))


def test_the_tokens_under_a_span_have_its_label() -> None:
    assert labels("Paris is in Spain today", ("Paris", 0), ("in Spain", 1)) == {1: 0, 3: 1, 4: 1}


def test_the_space_that_leads_a_token_is_nobodys() -> None:
    # The token " is" begins within the span, but by its space alone.
    assert labels("Paris is", ("Paris ", 0)) == {1: 0}


def test_a_token_of_both_labels_has_label_one() -> None:
    assert labels("good-bad end", ("good", 0), ("-bad", 1)) == {1: 1}


def test_an_items_label_is_one_when_any_spans_is() -> None:
    spans = [{"start": 0, "stop": 1, "label": 0}, {"start": 1, "stop": 2, "label": 1}]
    assert LabelledItem.model_validate({"text": "ab", "spans": spans}).label == 1
    assert LabelledItem.model_validate({"text": "ab", "spans": spans[:1]}).label == 0
    assert LabelledItem.model_validate({"text": "ab", "spans": spans, "label": 0}).label == 0


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([(0, 2), (1, 3)], "begins before"),
        ([(2, 2)], "is empty"),
        ([(0, 9)], "stops at 9"),
    ],
)
def test_spans_that_make_no_sense_are_refused(spans: list[tuple[int, int]], why: str) -> None:
    made = [{"start": start, "stop": stop, "label": 1} for start, stop in spans]
    with pytest.raises(ValueError, match=why):
        LabelledItem.model_validate({"text": "abcd", "spans": made})


def test_spans_of_a_chat_without_an_answer_are_refused() -> None:
    chat = {"messages": [{"role": "user", "content": "q"}], "spans": [{"start": 0, "stop": 1, "label": 1}]}
    with pytest.raises(ValueError, match="last message is not the assistant's"):
        LabelledItem.model_validate(chat)


def test_a_tokenizer_that_cannot_tell_is_refused() -> None:
    item = LabelledItem.model_validate({"text": "a b", "spans": [{"start": 0, "stop": 1, "label": 1}]})
    whole = WordSource()
    reading = read_item(whole, item.item)

    class NoLocator:
        shape, encode, read, close = whole.shape, whole.encode, whole.read, whole.close

    with pytest.raises(ArtefactError, match="which characters a token stands for"):
        token_labels(NoLocator(), item, reading)
