"""The scores of a stream: each once, as text or as objects alike, and the numbers that each probe gives alone."""

import json
import math
from typing import Any

import numpy as np
import pytest
from api_support.client import strict_json
from api_support.fake_engine import decode
from api_support.streams import (
    N_PROMPT,
    Kept,
    choice_of,
    event_of,
    generate,
    generate_together,
    open_session,
    rewritten,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pilothouse.api.feed import Allowance, Block, ScoreFeed
from pilothouse.api.scoring import ChoiceScores
from pilothouse.core.listing import number_texts
from pilothouse.core.messages import Reading
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack, waves
from pilothouse.probing import Isotonic, Platt, Probe

names = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(['"', "%s", "],[", "\\"])), max_size=4, unique=True)


def probe_called(name: str, number: int = 0) -> Probe:
    calibration = (None, Platt(a=0.5, b=0.25), Isotonic(x=(-1.0, 1.0), y=(0.25, 0.75)))[number % 3]
    return Probe(
        name,
        "made up",
        "high" if number % 2 else "low",
        ("max", "mean", "worst_ema", "prompt_end", "last")[number % 5],
        0.5,
        {1: np.full(2, number + 1, np.float32)},
        bias=number / 8,
        calibration=calibration,
        token_calibration=calibration,
    )


MANY = [probe_called(f"probe {number}", number) for number in range(64)]


@given(names, st.data())
def test_the_text_is_that_of_the_objects(called: list[str], data: st.DataObject) -> None:
    elements = st.floats(width=32)
    shape = (data.draw(st.integers(1, 3)), len(called))
    logits, scores = (data.draw(arrays(np.float32, shape, elements=elements)) for _ in range(2))
    block = Block(data.draw(st.integers(0, 99)), logits, scores)
    feed = ScoreFeed(ChoiceScores(ChoiceTrack(1, len(called)), [1], list(map(probe_called, called))), decode)
    if not called:
        assert feed.named(block) == {}
        return
    assert list(strict_json(feed.text(block)).items()) == list(feed.named(block).items())
    json.dumps(feed.named(block), allow_nan=False)


def written(values: Float32) -> list[float]:
    """float32 numbers as responses show them."""
    return [float(str(value)) for value in values]


def stream(rows: Float32, finish: bool = True) -> tuple[list[dict[str, Any]], Any]:
    """The choices of a stream under `MANY`, an event a row of readouts, and its session."""
    session, (track,) = open_session(MANY, tokens=True)
    events = [rewritten(session, event_of(choice_of(0, role="assistant", content="")))]
    for j, row in enumerate(rows):
        last = finish and j == len(rows) - 1
        generate(track, row[None], "stop" if last else None)
        events.append(rewritten(session, event_of(choice_of(0, "stop" if last else None, content="a"))))
    return [strict_json(event.removeprefix("data: "))["choices"][0] for event in events], session


@pytest.fixture(scope="module")
def rows() -> Float32:
    """Readouts [40, probes]: of the prompt's end, then of the generated tokens."""
    return np.random.default_rng(2).standard_normal((40, len(MANY))).astype(np.float32) * 2


def test_streamed_scores_are_the_probes_own(rows: Float32) -> None:
    choices, _ = stream(rows)
    for k, probe in enumerate(MANY):
        blocks = [choice["probe_scores"][probe.name] for choice in choices if "probe_scores" in choice]
        assert [block["start"] for block in blocks] == list(range(len(rows) - 1))
        logits = probe.logits(rows[1:, k])
        assert [x for block in blocks for x in block["logits"]] == [*written(logits), None]
        assert [x for block in blocks for x in block["scores"]] == [*written(probe.token_scores(logits)), None]


def test_the_end_says_what_the_probes_say(rows: Float32) -> None:
    choices, session = stream(rows)
    session.close()
    assert isinstance(session.around.sink, Kept)
    (outcome,) = session.around.sink.outcomes
    for k, probe in enumerate(MANY):
        shown, found = choices[-1]["probes"][probe.name], outcome.choices[0].probes[k]
        logits, end = probe.logits(rows[1:, k]), float(probe.logits(rows[:1, k])[0])
        stats = probe.stats(np.append(logits, np.float32(math.nan)), end)
        score = probe.score(stats)
        assert score is not None
        assert shown["stats"] == {
            name: float(str(np.float32(value))) if name in ("last", "min", "max", "prompt_end") else value
            for name, value in vars(stats).items()
        }
        assert (shown["score"], shown["flagged"], shown["n_scored"]) == (score, probe.flagged(score), len(rows) - 1)
        assert (found.score, found.flagged, found.level) == (score, shown["flagged"], shown["level"])
        token_score = float(probe.token_scores(np.array([end], dtype=np.float32))[0])
        assert found.prompt_end == (score if probe.aggregate == "prompt_end" else token_score)
        assert [entry["logit"] for entry in shown["tokens"]] == [*written(logits), None]


@pytest.mark.parametrize("left", [0, 20 * 2 * len(MANY), 2**21])
def test_the_end_lists_what_is_known_last(rows: Float32, left: int) -> None:
    # The numbers' texts are those of the stream as far as they were kept, unless a token was computed again since.
    for again in (False, True):
        session, (track,) = open_session(MANY, tokens=True)
        session.around.allowance.left = left
        for j, row in enumerate(rows):
            last = j == len(rows) - 1
            generate(track, row[None])
            if last:
                track.finish_reason = "stop"
                if again:
                    track.add(Reading(((N_PROMPT, 1, 0),), ((N_PROMPT, 1),), rows[7].tobytes()))
            event = rewritten(session, event_of(choice_of(0, track.finish_reason, content="a")))
        assert session.around.allowance.left == left
        read = np.concatenate([rows[7:8], rows[2:]]) if again else rows[1:]
        shown = strict_json(event.removeprefix("data: "))["choices"][0]["probes"]
        for k, probe in enumerate(MANY):
            logits = probe.logits(read[:, k])
            listed = shown[probe.name]["tokens"]
            assert [entry["logit"] for entry in listed] == [*written(logits), None]
            assert [entry["score"] for entry in listed] == [*written(probe.token_scores(logits)), None]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("watched", [[MANY] * 3, [MANY, MANY[::-1], MANY]], ids=["alike", "not alike"])
def test_sequences_that_are_read_together_stream_what_each_streams_alone(
    watched: list[list[Probe]], broken: bool
) -> None:
    rows = np.random.default_rng(3).standard_normal((50, 3, len(MANY))).astype(np.float32)
    if broken:
        rows[20, 2, 5] = np.inf
    together = [open_session(probes, tokens=True) for probes in watched]
    alone = [open_session(probes, tokens=True) for probes in watched]
    for j, step in enumerate(rows):
        for k, (_, (track,)) in enumerate(alone):
            generate(track, step[k : k + 1])
        if j == 0:
            for k, (_, (track,)) in enumerate(together):
                generate(track, step[k : k + 1])
        else:
            generate_together([track for _, (track,) in together], step)
        for (session, (track,)), (expected, (its_track,)) in zip(together, alone, strict=True):
            track.finish_reason = its_track.finish_reason = "stop" if j == len(rows) - 1 else None
            event = event_of(choice_of(0, track.finish_reason, content="a"))
            found = rewritten(session, event)
            assert strict_json(found.removeprefix("data: ")) == strict_json(
                rewritten(expected, event).removeprefix("data: ")
            )
            assert (found != event) == (j > 0 and not (broken and session is together[2][0] and 20 <= j < 49))


def test_what_is_made_of_one_row_is_made_of_all_that_mean_the_same() -> None:
    tracks = [ChoiceTrack(N_PROMPT, 2, reader=reader) for reader in ("a", "b", "a")]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    (first, _), (second, _), (third, number) = waves(rows, [tracks[0], tracks[1], tracks[2]])
    made: list[Float32] = []

    def make(given: Float32) -> str | None:
        made.append(given)
        # That there is nothing is an answer, too.
        return None if len(given) == 2 else "one"

    assert [wave.made(make) for wave in (first, second, third)] == [None, "one", None]
    assert len(made) == 2
    assert np.array_equal(made[0], rows[[0, 2]])
    assert np.array_equal(made[1], rows[[1]])
    assert number == 1
    (kept, at), (gone, _) = waves(rows[:2], [tracks[0], None])
    assert kept is not gone
    assert at == 0


def test_what_is_kept_of_a_stream_is_bounded_and_let_go(rows: Float32) -> None:
    scores = ChoiceScores(track := ChoiceTrack(N_PROMPT, len(MANY)), [1, 2, 3], MANY)
    allowance = Allowance(per_token := 2 * len(MANY))
    feeds = [ScoreFeed(scores, decode, allowance) for _ in range(2)]
    generate(track, rows[:4])
    for feed in feeds:
        for seen in range(1, 4):
            block = Block(seen - 1, logits := scores.generated(seen - 1, seen), scores.token_scores(logits))
            feed.text(block)
    logits = scores.generated(0, 3)
    assert allowance.left == 0
    assert feeds[1].give_up(logits) is None
    begun = feeds[0].give_up(logits)
    assert begun is not None
    assert begun.texts == number_texts(logits[:1], scores.token_scores(logits[:1]))
    assert (allowance.left, feeds[0].give_up(logits)) == (per_token, None)


def test_a_stream_that_is_given_up_lets_go_what_was_kept(rows: Float32) -> None:
    _, session = stream(rows, finish=False)
    assert session.around.allowance.left < Allowance().left
    session.close("aborted")
    assert session.around.allowance.left == Allowance().left


def test_of_several_tokens_an_event_those_are_held_back_that_follow_a_hole() -> None:
    probes = MANY[:2]
    scores = ChoiceScores(track := ChoiceTrack(N_PROMPT, 2), [1, 2, 3], probes)
    feed = ScoreFeed(scores, decode)
    rows = np.ones((7, 2), dtype=np.float32)
    rows[4, 1] = math.inf
    generate(track, rows)
    assert feed.take(finished=False) is None, "none was announced before"
    block = feed.take(finished=False)
    assert block is not None
    assert (block.start, len(block.logits)) == (0, 3)
    assert feed.take(finished=False) is None
    block = feed.take(finished=True)
    assert block is not None
    assert (block.start, np.isnan(block.logits).tolist()) == (3, [[False, True], *[[False, False]] * 2, [True, True]])
    assert feed.take(finished=True) is None
