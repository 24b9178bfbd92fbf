"""The JSONL schema of texts for SAEs, and which of them are held out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae_texts import SaeText, digest_texts, load_sae_texts, split_texts


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def texts(n: int, **keys: Any) -> list[SaeText]:
    return [SaeText(text=f"text {i} {keys}", **keys) for i in range(n)]


def test_lines_are_texts_or_chats_with_metadata(tmp_path: Path, make_source: Callable[..., Any]) -> None:
    chat = [{"role": "user", "content": "hi"}]
    one = write(tmp_path / "a.jsonl", {"text": "abc", "topic": "capitals", "label": 1, "spans": [[0, 1]], "x": None})
    two = write(tmp_path / "b.jsonl", {"messages": chat, "split": "eval"})
    raw, asked = load_sae_texts([one, two])
    assert (raw.metadata, raw.split, asked.split, asked.metadata) == (
        {"topic": "capitals", "label": "1"},
        None,
        "eval",
        {},
    )
    source = make_source({0: [0.0]})
    assert raw.token_ids(source, 99) == source.encode("abc")
    assert raw.token_ids(source, 3) == source.encode("ab")
    assert asked.token_ids(source, 99) == source.encode(chat, add_generation_prompt=True)
    answered = SaeText.model_validate({"messages": [*chat, {"role": "assistant", "content": "ho"}]})
    assert answered.token_ids(source, 99) == source.encode([*chat, {"role": "assistant", "content": "ho"}])


@pytest.mark.parametrize(
    "line",
    [
        '{"text": ""}',
        "{}",
        '{"text": "a", "messages": [{"role": "u", "content": "c"}]}',
        '{"messages": []}',
        "nonsense",
    ],
)
def test_other_lines_are_refused_by_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(ArtefactError, match=r"a\.jsonl, line 2"):
        load_sae_texts([write(tmp_path / "a.jsonl", {"text": "good"}, line)])


def test_named_splits_are_kept_and_others_not_used() -> None:
    made = texts(5, split="train") + texts(3, split="eval") + texts(4, split="select")
    found = split_texts(made, seed=1)
    assert sorted(text.item for text in found.train) == sorted(text.item for text in made[:5])
    assert found.held_out == made[5:8]


def test_without_splits_a_tenth_is_held_out_and_equal_texts_stay_together() -> None:
    once = texts(400)
    found = split_texts(once + once, seed=1)
    assert len(found.train) + len(found.held_out) == 800
    assert 40 < len(found.held_out) < 120
    assert not {text.item for text in found.train} & {text.item for text in found.held_out}
    assert split_texts(once + once, seed=1) == found
    assert {text.item for text in split_texts(once, seed=2).held_out} != {text.item for text in found.held_out}
    assert [text.item for text in found.train] != [text.item for text in once + once if text not in found.held_out]


def test_train_lines_alone_are_held_out_of_and_unnamed_lines_join_named_ones() -> None:
    alone = split_texts(texts(200, split="train"), seed=1)
    assert 0 < len(alone.held_out) < 60
    joined = split_texts(texts(200) + texts(9, split="eval"), seed=1)
    assert 9 < len(joined.held_out) < 60
    assert {text.split for text in joined.train} == {None}


def test_a_held_out_text_that_is_trained_on_is_left_out() -> None:
    twice = [SaeText(text="the same", split=split) for split in ("train", "eval")]
    made = [*twice, SaeText(text="other", split="eval")]
    found = split_texts(made, seed=0)
    assert (found.held_out, found.repeated) == (made[2:], 1)


@pytest.mark.parametrize("made", [texts(3, split="eval"), texts(2, split="select"), texts(1)])
def test_an_empty_side_is_refused(made: list[SaeText]) -> None:
    with pytest.raises(ArtefactError, match="no texts for split"):
        split_texts(made, seed=0)


def test_the_digest_is_of_the_content_in_order() -> None:
    one, two = SaeText.model_validate({"text": "a", "topic": "t"}), SaeText(text="b")
    assert digest_texts([one, two]) == digest_texts([SaeText.model_validate({"topic": "t", "text": "a"}), two])
    assert len({digest_texts(made) for made in ([one, two], [two, one], [one], [SaeText(text="a"), two])}) == 4
