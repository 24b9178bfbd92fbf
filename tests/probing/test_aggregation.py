import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.core.sites import Float32
from pilothouse.probing import Isotonic, Platt, Probe, ProbeStats
from pilothouse.probing.aggregation import summarise, support


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


MakeProbe = Callable[..., Probe]
ALARMS = ("high", "low")
logit_lists = st.lists(st.floats(-20, 20, width=32) | st.just(math.nan), max_size=200)


def reference(logits: list[float], alarm: str, flagged: Callable[[float], bool]) -> dict[str, Any]:
    """The statistics token by token, as one would explain them."""
    worst = max if alarm == "high" else min
    seen: list[float] = []
    averages: list[float] = []
    windows: list[float] = []
    first = None
    for index, logit in enumerate(logits):
        if math.isnan(logit):
            continue
        seen.append(logit)
        averages.append(logit if not averages else 0.5 * logit + 0.5 * averages[-1])
        windows.append(math.fsum(seen[-16:]) / len(seen[-16:]))
        if first is None and flagged(averages[-1]):
            first = index
    return {
        "last": seen[-1],
        "mean": math.fsum(seen) / len(seen),
        "min": min(seen),
        "max": max(seen),
        "worst_ema": worst(averages),
        "worst_rolling": worst(windows),
        "fraction_flagged": sum(map(flagged, averages)) / len(averages),
        "first_flagged": first,
    }


@pytest.mark.parametrize("alarm", ALARMS)
@given(logits=logit_lists.filter(lambda found: any(not math.isnan(x) for x in found)))
@settings(max_examples=150, deadline=None)
def test_statistics_are_those_of_a_loop_over_tokens(alarm: str, logits: list[float]) -> None:
    calibration = Platt(a=0.7, b=0.2)
    # An irrational threshold, so that rounding never decides on which side an average lies.
    threshold = 1 / math.pi
    probe = Probe("p", "bad", alarm, "mean", threshold, {0: np.ones(2, np.float32)}, calibration=calibration)  # type: ignore[arg-type]

    def flagged(logit: float) -> bool:
        score = 1 / (1 + math.exp(-(0.7 * logit + 0.2)))
        return score > threshold if alarm == "high" else score < threshold

    stats = probe.stats(np.array(logits, dtype=np.float32), prompt_end=1.25)
    assert stats.prompt_end == 1.25
    for key, value in reference(logits, alarm, flagged).items():
        found = getattr(stats, key)
        assert (found is None) == (value is None), key
        assert found is None or found == pytest.approx(value, rel=1e-9, abs=1e-9), key


@pytest.mark.parametrize("alarm", ALARMS)
def test_long_texts_use_a_window_of_sixteen_tokens(make_probe: MakeProbe, alarm: str) -> None:
    logits = np.random.default_rng(8).normal(size=400).astype(np.float32)
    logits[::7] = np.nan
    stats = make_probe(alarm=alarm).stats(logits, prompt_end=None)
    expected = reference(logits.tolist(), alarm, lambda logit: logit > 0 if alarm == "high" else logit < 0)
    assert {key: getattr(stats, key) for key in expected} == pytest.approx(expected)


def test_a_worked_example(make_probe: MakeProbe) -> None:
    stats = make_probe(alarm="high").stats(f32([np.nan, -4, 2, np.nan, 6]), prompt_end=None)
    # Averages: -4, -1, 2.5; only the last is past a score of 0.5.
    assert dataclasses.asdict(stats) == {
        "last": 6.0,
        "mean": pytest.approx(4 / 3),
        "min": -4.0,
        "max": 6.0,
        "worst_ema": pytest.approx(2.5),
        "worst_rolling": pytest.approx(4 / 3),
        "fraction_flagged": pytest.approx(1 / 3),
        "first_flagged": 4,
        "prompt_end": None,
    }


@pytest.mark.parametrize("logits", [[], [math.nan, math.nan], [math.inf, -math.inf]])
def test_nothing_scored_leaves_the_end_of_the_prompt(make_probe: MakeProbe, logits: list[float]) -> None:
    probe = make_probe()
    stats = probe.stats(np.array(logits, dtype=np.float32), prompt_end=-2.0)
    assert stats == ProbeStats(prompt_end=-2.0)
    assert probe.score(stats) is None
    assert make_probe(aggregate="prompt_end").score(stats) == pytest.approx(1 / (1 + math.exp(2)))


@pytest.mark.parametrize("aggregate", ["last", "mean", "min", "max", "worst_ema", "worst_rolling", "prompt_end"])
@pytest.mark.parametrize("calibration", [None, Platt(a=2.0, b=-1.0), Isotonic(x=(-1.0, 9.0), y=(0.25, 0.75))])
def test_the_score_is_the_calibrated_aggregate(
    make_probe: MakeProbe, aggregate: str, calibration: Platt | Isotonic | None
) -> None:
    fields = ("last", "mean", "min", "max", "worst_ema", "worst_rolling")
    stats = ProbeStats(**{field: 0.5 * i for i, field in enumerate(fields)}, fraction_flagged=9.0, prompt_end=7.0)  # type: ignore[arg-type]
    logit = 7.0 if aggregate == "prompt_end" else 0.5 * fields.index(aggregate)
    expected = {
        type(None): 1 / (1 + math.exp(-logit)),
        Platt: 1 / (1 + math.exp(-(2 * logit - 1))),
        Isotonic: 0.25 + 0.05 * (logit + 1),
    }[type(calibration)]
    score = make_probe(aggregate=aggregate, calibration=calibration).score(stats)
    assert score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("alarm", "score", "flagged"),
    [("high", 0.7, True), ("high", 0.6, False), ("high", 0.5, False), ("low", 0.5, True), ("low", 0.6, False)],
)
def test_flagged_is_strictly_beyond_the_threshold(
    make_probe: MakeProbe, alarm: str, score: float, flagged: bool
) -> None:
    assert make_probe(alarm=alarm, threshold=0.6).flagged(score) is flagged


@pytest.mark.parametrize("alarm", ALARMS)
@given(logits=logit_lists, threshold=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_an_alarm_on_the_average_and_flagged_tokens_agree(alarm: str, logits: list[float], threshold: float) -> None:
    probe = Probe("p", "bad", alarm, "worst_ema", threshold, {0: np.ones(2, np.float32)})  # type: ignore[arg-type]
    stats = probe.stats(np.array(logits, dtype=np.float32), prompt_end=None)
    score = probe.score(stats)
    if score is not None:
        assert probe.flagged(score) == (stats.first_flagged is not None) == (stats.fraction_flagged != 0)


@pytest.mark.parametrize("alarm", ALARMS)
@pytest.mark.parametrize("aggregate", ["last", "mean", "min", "max", "worst_ema", "worst_rolling"])
@given(logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=150))
def test_the_support_weighs_the_logits_to_their_aggregate(logits: list[float], aggregate: Any, alarm: Any) -> None:
    weights = support(np.array(logits), aggregate, alarm)
    stats = summarise(f32(logits), None, alarm, lambda average: average > 0)
    assert weights @ np.array(logits) == pytest.approx(getattr(stats, aggregate), abs=1e-9)
    assert weights.sum() == pytest.approx(1)


def test_the_support_of_a_moving_average_by_hand() -> None:
    # Averages 0, 4, 3: the worst is the second, half of it the second logit and half the first.
    assert support(np.array([0.0, 8.0, 2.0]), "worst_ema", "high").tolist() == [0.5, 0.5, 0]
    # 0, 4, 3: towards the low end it is the first itself.
    assert support(np.array([0.0, 8.0, 2.0]), "worst_ema", "low").tolist() == [1, 0, 0]
    assert support(np.array([0.0, 8.0, 9.0]), "worst_ema", "high").tolist() == [0.25, 0.25, 0.5]
    with pytest.raises(ValueError, match="prompt_end"):
        support(np.array([0.0]), "prompt_end", "high")
