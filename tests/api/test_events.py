"""The text of events: what is spliced into it is what reading and writing all of it would make."""

import json
import math
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import RISK
from api_support.client import strict_json
from api_support.streams import choice_of, event_of, generate, open_session, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.api.events import goes_on, lone_choice, read, with_key, written
from pilothouse.core.listing import TokenTable, json_of, json_pieces, texts_of
from pilothouse.probing import Platt, Probe

PROBES = [
    Probe("risk", "made up", "high", "max", RISK["threshold"], {1: np.ones(4, np.float32)}, bias=0.5),
    Probe('ri"sk\n%s', "é", "low", "mean", 0.5, {2: np.ones(4, np.float32)}, token_calibration=Platt(a=0.5, b=1.0)),
]
KEYS = [
    '"finish_reason":null',
    '"logprobs":null,"finish_reason":null',
    '"choices":[{"index":3,',
    '},{"index":',
    '"role":',
]

words = st.one_of(st.text(), st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda key: f"\\{key}\\"))
deltas: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(dict, content=words),
    st.builds(dict, content=words, reasoning=words),
    st.lists(words, min_size=1, max_size=3).map(
        lambda texts: {"tool_calls": [{"index": i, "function": {"arguments": text}} for i, text in enumerate(texts)]}
    ),
    st.just({"role": "assistant", "content": ""}),
    st.just({}),
)
readouts = st.one_of(st.floats(-9, 9, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, list[tuple[float, float]], dict[str, Any], dict[str, Any]]]:
    """Events of two choices: the number, the new readouts, the choice and what else stands in the chunk."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        index = draw(st.integers(0, 1))
        rows = draw(st.lists(st.tuples(readouts, readouts), max_size=3))
        more: dict[str, Any] = draw(st.sampled_from([{}, {}, {"usage": {"total_tokens": 4}}, {"usage": None}]))
        choice = choice_of(index, **draw(deltas))
        if draw(st.booleans()) and rows:
            entries = [{"token": draw(words), "logprob": -1.5, "top_logprobs": []} for _ in rows]
            choice["logprobs"] = draw(st.sampled_from([None, None, {"content": entries}]))
        found.append((index, rows, choice, more))
    return found


def reordered(choice: dict[str, Any]) -> dict[str, Any]:
    """The same choice in an order that vLLM does not write, so that all of its event has to be read."""
    return dict(reversed(choice.items()))


@given(streams(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_spliced_is_what_reading_all_would_say(events: Any, tokens: bool) -> None:
    quick, slow = (open_session(PROBES, 2, tokens=tokens) for _ in range(2))
    for index, rows, choice, more in events:
        answers = []
        for (session, tracks), shown in ((quick, choice), (slow, reordered(choice))):
            generate(tracks[index], np.array(rows, dtype=np.float32).reshape(-1, 2))
            event = event_of(shown, **more)
            answers.append(rewritten(session, event))
            assert answers[-1].startswith("data: ")
            assert answers[-1].endswith("}\n\n")
        first, second = (strict_json(answer.removeprefix("data: ")) for answer in answers)
        assert first == second
        ours = first["choices"][0].pop("probe_scores", None)
        for entry in (first["choices"][0]["logprobs"] or {"content": []})["content"]:
            entry.pop("probe_scores", None)
        assert first == json.loads(event_of(choice, **more).removeprefix("data: "))
        assert ours is None or (tokens and set(ours) == {probe.name for probe in PROBES})


@given(words, words)
def test_a_lone_choice_is_found_whatever_it_says(text: str, key: str) -> None:
    event = event_of(choice_of(12, content=text, name=key))
    assert lone_choice(event) == 12
    value = {"a": [1.5, None], key: text}
    chunk = strict_json(with_key(event, "ours", json.dumps(value)).removeprefix("data: "))
    assert chunk["choices"][0].pop("ours") == value
    assert chunk == strict_json(event.removeprefix("data: "))


@pytest.mark.parametrize(
    "event",
    [
        event_of(),
        event_of(usage={"total_tokens": 3}),
        event_of(choice_of(0, content="a"), choice_of(1, content="b")),
        event_of(choice_of(0, content="a"), {"index": 1, "delta": {"content": "b"}}),
        event_of(choice_of(0, content="a") | {"logprobs": {"content": []}}),
        event_of(choice_of(0, content="a") | {"logprobs": {"top_logprobs": [{'"finish_reason"': None}]}}),
        event_of(choice_of(0, role="assistant", content="")),
        event_of(choice_of(0, "stop", content="a")),
        event_of(reordered(choice_of(0, content="a"))),
        'data: {"error":{"message":"\\"logprobs\\":null,\\"finish_reason\\":null"}}\n\n',
        "data: [DONE]\n\n",
    ],
)
def test_other_events_have_to_be_read(event: str) -> None:
    assert lone_choice(event) is None


def test_an_end_is_seen_beside_what_goes_on() -> None:
    assert goes_on(event_of(choice_of(0), choice_of(1)))
    assert not goes_on(event_of(choice_of(0), choice_of(1, "stop")))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values), st.booleans())
def test_events_are_read_and_written_without_loss(chunk: dict[str, Any], ascii_only: bool) -> None:
    assert read(f"data: {json.dumps(chunk, ensure_ascii=ascii_only)}\n\n") == chunk
    event = "".join(written(chunk))
    assert event.startswith("data: {")
    assert "\n" not in event[:-2]
    assert strict_json(event.removeprefix("data: ")) == chunk


@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_large_event_is_written_in_parts(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr("pilothouse.api.events.PART", 1000)
    values = np.zeros((n, 2), np.float32)
    table = TokenTable(["a"] * 2, [7, 8], values, values, lambda j: None)
    chunk = {f"probe {k}": {"tokens": listing} for k, listing in enumerate(table.listings())}
    *parts, last = written(chunk)
    longest = max(map(len, texts_of(json_pieces(chunk))))
    assert all(1000 <= len(part) < 1000 + longest for part in parts)
    assert 0 < len(last) < 1000 + longest
    assert bool(parts) == (n > 7)
    assert "".join((*parts, last)) == f"data: {json_of(chunk)}\n\n"


def test_what_is_no_number_is_null() -> None:
    assert strict_json("".join(written({"a": [math.nan, math.inf, -math.inf, 0.1]}))[6:]) == {
        "a": [None, None, None, 0.1]
    }


def test_half_a_surrogate_pair_passes() -> None:
    chunk = read('data: {"a":"\\ud800"}\n\n')
    assert chunk == {"a": "\ud800"}
    assert json.loads("".join(written(chunk))[6:]) == chunk


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        read('data: {"finish_reason":\n\n')
