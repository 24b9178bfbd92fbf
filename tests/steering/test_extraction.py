import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.steering import ContrastPair, Recipe, Vector, extract_vector, load_pairs, load_vector, save_vector
from pilothouse.steering.tokens import Token, parse_token


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


MakeSource = Callable[..., Any]
ANSWER = 2
DIRECTIONS = {0: f32([1, 0, 0, 0]), 2: f32([0, 3, 0, -4])}


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def pair(positive: Any, negative: Any) -> ContrastPair:
    return ContrastPair.model_validate({"positive": positive, "negative": negative})


def extract_mean_difference(
    source: Any,
    pairs: list[ContrastPair],
    *,
    name: str,
    layers: list[int] | None,
    token: Token,
    progress: Callable[[int, int], None] | None = None,
) -> Vector:
    recipe = Recipe(token=token, layers=layers)
    return extract_vector(source, pairs, name=name, recipe=recipe, progress=progress).vector


def test_a_planted_direction_is_found_at_the_last_token(make_source: MakeSource) -> None:
    pairs = [pair("ab+", "ab-"), pair("longer text+", "b-")]
    vector = extract_mean_difference(make_source(DIRECTIONS), pairs, name="planted", layers=None, token="last")
    assert vector.default_layers == (0, 2)
    for layer, planted in DIRECTIONS.items():
        assert vector.direction.layers[layer].tolist() == (2 * planted).tolist()
        norms = [np.linalg.norm(5 + sign * planted) for sign in (1, -1)]
        assert vector.resid_norm[layer] == pytest.approx(np.mean(norms), rel=1e-6)


def test_the_mean_is_over_an_items_tokens_without_the_first_one(make_source: MakeSource) -> None:
    # Of "+abc" all four tokens carry the direction, of "abc+" one in four; each item counts once.
    vector = extract_mean_difference(
        make_source(DIRECTIONS), [pair("+abc", "abc"), pair("abc+", "a")], name="m", layers=[0], token="mean"
    )
    assert vector.direction.layers[0].tolist() == pytest.approx(((1 + 0.25) / 2 * DIRECTIONS[0]).tolist())


def test_the_reference_is_a_loop_over_noisy_streams(make_source: MakeSource) -> None:
    source = make_source(DIRECTIONS, noise=2.0)
    pairs = [pair(f"item {i}+{i}", f"item {i}") for i in range(70)]
    vector = extract_mean_difference(source, pairs, name="n", layers=[2], token="mean")
    total, norms = np.zeros(4), []
    for each in pairs:
        for sign, text in ((1, each.positive), (-1, each.negative)):
            stream = source.stream(source.encode(text), 2)[1:].astype(np.float64)
            total += sign * stream.mean(axis=0)
            norms += [float(np.linalg.norm(row)) for row in stream]
    np.testing.assert_allclose(vector.direction.layers[2], total / 70, rtol=1e-5, atol=1e-6)
    assert vector.resid_norm[2] == pytest.approx(sum(norms) / len(norms))
    assert source.batch_sizes == [16, 32, 64, 28]


@pytest.mark.parametrize("token", ["last", "mean"])
def test_of_a_chat_the_answers_tokens_count_and_not_the_template(make_source: MakeSource, token: Token) -> None:
    # The question's `+` is in both; only the answers differ, and the template's end would dilute the mean.
    question = ("user", "a+b?")
    pairs = [pair(chat(question, ("assistant", "++")), chat(question, ("assistant", "no")))]
    vector = extract_mean_difference(make_source(DIRECTIONS), pairs, name="c", layers=[0], token=token)
    expected = 2.0 if token == "last" else 1.5
    assert vector.direction.layers[0].tolist() == [expected, 0, 0, 0]


def test_a_chat_without_an_answer_is_read_where_the_answer_begins(make_source: MakeSource) -> None:
    source = make_source(DIRECTIONS)
    vector = extract_mean_difference(
        source, [pair(chat(("user", "+")), chat(("user", "-")))], name="q", layers=[0], token="mean"
    )
    assert [prompt[-1] for prompt in source.prompts] == [ANSWER, ANSWER]
    assert vector.direction.layers[0].tolist() == [2, 0, 0, 0]


def test_an_answer_alone_is_read_too(make_source: MakeSource) -> None:
    vector = extract_mean_difference(
        make_source(DIRECTIONS),
        [pair(chat(("assistant", "a+")), chat(("assistant", "a")))],
        name="a",
        layers=[0],
        token="last",
    )
    assert vector.direction.layers[0].tolist() == [1, 0, 0, 0]


def test_the_card_says_where_the_vector_came_from(make_source: MakeSource, tmp_path: Path) -> None:
    pairs = [pair("a+", "a-")]
    vector = extract_mean_difference(make_source(DIRECTIONS), pairs, name="p", layers=[2], token="last")
    save_vector(vector, tmp_path / "p.safetensors")
    loaded = load_vector(tmp_path / "p.safetensors")
    assert loaded.digest == vector.digest
    assert loaded.card == vector.card
    assert (loaded.method, loaded.model) == ("mean_difference", "org/character-model")
    assert (loaded.card["n_pairs"], loaded.card["token"]) == (1, "last")
    assert loaded.card["dataset"].startswith("sha256:")
    assert loaded.card["created"].endswith("+00:00")
    other = extract_mean_difference(make_source(DIRECTIONS), pairs * 2, name="p", layers=[2], token="last")
    assert other.card["dataset"] != vector.card["dataset"]
    loaded.check_fits(ModelShape("character-model", 4, 3, (0, 2)))


def test_progress_ends_at_the_number_of_items(make_source: MakeSource) -> None:
    seen: list[tuple[int, int]] = []
    extract_mean_difference(
        make_source(DIRECTIONS),
        [pair("a+", "a-")] * 40,
        name="p",
        layers=[0],
        token="last",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(16, 80), (48, 80), (80, 80)]


@pytest.mark.parametrize(
    ("pairs", "layers", "name", "why"),
    [
        ([], None, "v", "no contrast pairs"),
        ([("a", "b")], [1], "v", "layer 1 has no site"),
        ([("a", "b")], [], "v", "no layers"),
        ([("a", "b")], None, "a/b", "cannot be a name"),
    ],
)
def test_what_cannot_be_extracted_is_refused_before_anything_is_read(
    make_source: MakeSource, pairs: list[tuple[str, str]], layers: list[int] | None, name: str, why: str
) -> None:
    source = make_source(DIRECTIONS)
    with pytest.raises(ArtefactError, match=why):
        extract_mean_difference(source, [pair(*each) for each in pairs], name=name, layers=layers, token="last")
    assert source.batch_sizes == []


def test_a_stream_that_is_not_finite_is_refused(make_source: MakeSource) -> None:
    source = make_source({0: f32([np.inf, 0, 0, 0])})
    with np.errstate(invalid="ignore"), pytest.raises(ArtefactError, match="NaN"):
        extract_mean_difference(source, [pair("a+", "a-")], name="v", layers=None, token="last")


@pytest.mark.parametrize(("token", "expected"), [(-1, 2.0), (-2, 1.0), (-3, 0.0), ("prompt_end", 0.0)])
def test_tokens_are_counted_back_from_the_answers_end_and_on_into_the_prompt(
    make_source: MakeSource, token: Token, expected: float
) -> None:
    question = ("user", "a+b?")
    pairs = [pair(chat(question, ("assistant", "++")), chat(question, ("assistant", "no")))]
    source = make_source(DIRECTIONS)
    vector = extract_mean_difference(source, pairs, name="c", layers=[0], token=token)
    assert vector.direction.layers[0].tolist() == [expected, 0, 0, 0]
    assert vector.card["token"] == token


def test_the_prompts_end_is_the_token_that_predicts_the_answer(make_source: MakeSource) -> None:
    # The question decides here; the answers would undo it, and with or without an answer it is the same token.
    asked, denied = ("user", "+"), ("user", "-")
    for answers in ([("assistant", "-"), ("assistant", "+")], []):
        positive, negative = (chat(turn, *answers[i : i + 1]) for i, turn in enumerate((asked, denied)))
        source = make_source(DIRECTIONS)
        vector = extract_mean_difference(source, [pair(positive, negative)], name="q", layers=[0], token="prompt_end")
        assert vector.direction.layers[0].tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    ("positive", "token", "why"),
    [
        ("ab", -3, "positive item of pair 2 is too short"),
        ("ab", "prompt_end", "positive item of pair 2 is a text"),
        (chat(("assistant", "a+")), "prompt_end", "positive item of pair 2 is too short"),
    ],
)
def test_an_item_without_such_a_token_is_refused(
    make_source: MakeSource, positive: Any, token: Token, why: str
) -> None:
    fine = chat(("user", "abc"), ("assistant", "def"))
    with pytest.raises(ArtefactError, match=why):
        extract_mean_difference(
            make_source(DIRECTIONS), [pair(fine, fine), pair(positive, fine)], name="v", layers=[0], token=token
        )


@pytest.mark.parametrize(
    ("text", "token"), [("last", "last"), ("mean", "mean"), ("prompt_end", "prompt_end"), ("-3", -3)]
)
def test_a_token_on_the_command_line(text: str, token: Token) -> None:
    assert parse_token(text) == token


@pytest.mark.parametrize("text", ["", "first", "0", "3", "-0", "--1", "-1.5", "- 1"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ArtefactError, match="prompt_end"):
        parse_token(text)


def test_pairs_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    messages = chat(("user", "hi"), ("assistant", "hello"))
    lines = [
        {"positive": "yes\u2028or", "negative": "no", "topic": "t", "split": "train"},
        {"positive": messages, "negative": "x"},
    ]
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    first, second = load_pairs(path)
    assert (first.positive, first.topic, first.split) == ("yes\u2028or", "t", "train")
    assert [message.model_dump() for message in second.positive] == messages  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "line",
    [
        '{"positive": "a"}',
        '{"positive": "a", "negative": ""}',
        '{"positive": "a", "negative": []}',
        '{"positive": "a", "negative": [{"role": "user"}]}',
        '{"positive": "a", "negative": "b", "negativ": "c"}',
        '{"positive": "a", "negative": 3}',
        "not json",
        "[]",
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"positive": "a", "negative": "b"}\n\n' + line + "\n")
    with pytest.raises(ArtefactError, match=r"pairs\.jsonl, line 3: "):
        load_pairs(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_pairs_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"pairs\.jsonl"):
        load_pairs(path)


def test_float64_sums_keep_what_float32_would_lose(make_source: MakeSource) -> None:
    class Tall(make_source):  # type: ignore[valid-type,misc]
        """Streams far from zero, as those of real models are, that differ by little."""

        def stream(self, prompt: list[int], layer: int) -> Float32:
            return np.full((len(prompt), 4), 4096.0 + (0.0009765625 if ord("+") in prompt else 0), dtype=np.float32)

    pairs = [pair(f"{i}+", f"{i}") for i in range(300)]
    vector = extract_mean_difference(Tall(DIRECTIONS), pairs, name="t", layers=[0], token="last")
    assert vector.direction.layers[0].tolist() == [0.0009765625] * 4
