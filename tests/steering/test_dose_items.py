"""The files that doses are measured on."""

import json
from pathlib import Path

import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.steering import DosePrompt, load_prompts, load_texts
from pilothouse.steering.dose_items import digest_lines


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        ("It is Paris.", True),
        ("it is PARIS", True),
        ("the city of light", True),
        ("Lyon", False),
        ("Paris, or maybe rome", False),
        ("", False),
    ],
)
def test_an_answer_needs_any_of_what_is_expected_and_none_of_what_is_rejected(answer: str, ok: bool) -> None:
    assert DosePrompt(prompt="q", expect=("Paris", "City of Light"), reject=("Rome", "Madrid")).satisfied(answer) is ok


@pytest.mark.parametrize(
    ("wanted", "answer", "ok"),
    [
        ("Berlin", "Berlinoslo, or Ostberlin", False),
        ("Berlin", "Berlinoslo, or (Berlin)", True),
        ("yes", "yesterday", False),
        ("12", "it is 112 or 123", False),
        ("12", "it is 12.", True),
        ("12", "12kg", False),
        ("!", "Hooray!", True),
        ("New York", "in new york", True),
        ("don't", "I don't know", True),
        # Written without spaces between words.
        ("北京", "首都是北京。", True),
        ("北京", "北京市", True),
        ("Straße", "in der STRASSE", True),
    ],
)
def test_strings_are_found_as_whole_words(wanted: str, answer: str, ok: bool) -> None:
    assert DosePrompt(prompt="q", expect=(wanted,)).satisfied(answer) is ok
    assert DosePrompt(prompt="q", reject=(wanted,)).satisfied(answer) is not ok


def test_without_expectations_only_what_is_rejected_counts() -> None:
    prompt = DosePrompt(prompt="q", reject=("sorry",))
    assert (prompt.satisfied(""), prompt.satisfied("I am Sorry")) == (True, False)


def test_prompts_are_texts_or_chats(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    lines = [
        {"prompt": "once", "expect": ["upon"], "topic": "t", "split": "eval"},
        {"messages": chat, "reject": ["x"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    text, messages = load_prompts(path)
    assert (text.item, text.topic, text.split) == ("once", "t", "eval")
    assert [message.model_dump() for message in messages.item] == chat  # type: ignore[union-attr]
    assert digest_lines([text, messages]) != digest_lines([messages, text])
    assert digest_lines([text]).startswith("sha256:")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "a"}', "give expect, reject or both"),
        ('{"expect": ["a"]}', "exactly one of prompt and messages"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}], "expect": ["a"]}', "exactly one"),
        ('{"messages": [{"role": "assistant", "content": "b"}], "expect": ["a"]}', "already end with an answer"),
        ('{"prompt": "", "expect": ["a"]}', "prompt"),
        ('{"prompt": "a", "expect": [""]}', "expect"),
        ('{"prompt": "a", "expect": "a"}', "expect"),
        ('{"prompt": "a", "expects": ["a"]}', "expects"),
        ("{", "JSON"),
    ],
)
def test_a_bad_prompt_is_named_by_file_and_line(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "expect": ["b"]}\n' + line + "\n")
    with pytest.raises(ArtefactError, match=rf"p\.jsonl, line 2: .*{why}"):
        load_prompts(path)


def test_neutral_texts_are_lines_or_json_lines(tmp_path: Path) -> None:
    plain, lines = tmp_path / "n.txt", tmp_path / "n.jsonl"
    plain.write_text('one text\n\n {"not": "json"} \n')
    lines.write_text('{"text": "one text", "topic": "t"}\n{"text": "two\\nlines"}\n')
    assert load_texts(plain) == ["one text", '{"not": "json"}']
    assert load_texts(lines) == ["one text", "two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("n.txt", b"\n \n", "has no items"),
        ("n.txt", b"\xff", "cannot be read"),
        ("n.jsonl", b'{"text": "a"}\n{"text": ""}\n', r"n\.jsonl, line 2"),
        ("n.jsonl", b"plain text\n", r"n\.jsonl, line 1"),
    ],
)
def test_bad_texts_are_refused(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=why):
        load_texts(tmp_path / name)
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_texts(tmp_path / "absent.txt")
