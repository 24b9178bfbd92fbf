import json
from pathlib import Path

import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import LabelledItem, load_statements


def test_jsonl_holds_texts_and_chats(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lines = [{"text": "t", "label": 1, "topic": "x", "split": "eval"}, {"messages": chat, "label": 0}]
    path.write_text("\n".join(map(json.dumps, lines)))
    text, messages = load_statements(path)
    assert (text.item, text.label, text.topic, text.split) == ("t", 1, "x", "eval")
    assert [message.model_dump() for message in messages.item] == chat  # type: ignore[union-attr]
    assert (messages.label, messages.topic, messages.split) == (0, None, None)


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "t"}',
        '{"text": "t", "label": 2}',
        '{"text": "t", "label": "1"}',
        '{"text": "t", "label": 1, "split": "test"}',
        '{"text": "t", "label": 1, "spilt": "eval"}',
        '{"label": 1}',
        '{"text": "", "label": 1}',
        '{"messages": [], "label": 1}',
        '{"text": "t", "messages": [{"role": "user", "content": "q"}], "label": 1}',
        "{",
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"text": "t", "label": 1}\n' + line)
    with pytest.raises(ArtefactError, match=r"items\.jsonl, line 2: "):
        load_statements(path)


def test_csv_in_the_layout_of_geometry_of_truth(tmp_path: Path) -> None:
    path = tmp_path / "cities.csv"
    path.write_bytes(
        b'\xef\xbb\xbfstatement,label,city\r\n"Paris, on the Seine, is in France.",1,Paris\r\n"He said ""no"".",0,\r\n'
    )
    assert load_statements(path) == [
        LabelledItem(text="Paris, on the Seine, is in France.", label=1, topic="cities"),
        LabelledItem(text='He said "no".', label=0, topic="cities"),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("text,label\na,1\n", "no column 'statement'"),
        ("statement,label\na,1\nb,yes\n", "line 3: label"),
        ("statement,label\na\n", "line 2: label"),
        ("statement,label\n,1\n", "line 2: text"),
        ("statement,label\n", "no items"),
        ("", "no column"),
    ],
)
def test_a_bad_csv_file_is_refused_with_the_place(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "cities.csv"
    path.write_text(content)
    with pytest.raises(ArtefactError, match=r"cities\.csv.*" + why):
        load_statements(path)


@pytest.mark.parametrize("name", ["absent.csv", "absent.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_statements(tmp_path / name)
