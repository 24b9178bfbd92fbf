"""Levels and reasons against the sentences that define them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pilothouse.core.errors import ArtefactError
from pilothouse.harbor.paths import probes_dir
from pilothouse.probing import Probe, load_probe, load_probes, probe_from_bytes, save_probe
from pilothouse.probing.aggregation import Aggregate
from pilothouse.probing.feature import feature_probe
from pilothouse.probing.words import Level, tellings

CARD: dict[str, Any] = {
    "format": 1,
    "kind": "probe",
    "name": "truth",
    "label": "true",
    "alarm": "low",
    "aggregate": "worst_ema",
    "threshold": 0.5,
}
TWO = [{"name": "sure", "at_least": 0.75}, {"name": "not sure"}]
MAKES = Callable[..., Probe]


def loaded(**card: Any) -> Probe:
    row = np.ones(4, dtype=np.float32)
    return probe_from_bytes(bytes(save({"weight.1": row}, metadata={"pilothouse": json.dumps({**CARD, **card})})))


@pytest.mark.parametrize(
    ("confidence", "level"),
    [
        (1.0, "high"),
        (0.9, "high"),
        (0.8999, "moderate"),
        (0.7, "moderate"),
        (0.6999, "low"),
        (0.5, "low"),
        (0.4999, "very low"),
        (0.0, "very low"),
    ],
)
def test_levels_are_of_the_confidence_that_the_good_case_holds(
    make_probe: MAKES, confidence: float, level: str
) -> None:
    assert make_probe(alarm="low").level(confidence) == level
    assert make_probe(alarm="high").level(1 - confidence) == level
    assert make_probe(alarm="low").level(None) is None


def test_an_activation_has_no_level() -> None:
    probe = feature_probe("f", 1, np.ones(4, np.float32), 0.0, 0.0, None)
    assert probe.level(0.4) is None


def test_a_card_has_words_of_its_own(tmp_path: Path) -> None:
    probe = loaded(levels=TWO)
    assert [probe.level(score) for score in (1.0, 0.75, 0.7499)] == ["sure", "sure", "not sure"]
    assert loaded(levels=[{"name": "any"}]).level(0.0) == "any"
    save_probe(probe, tmp_path / "p.safetensors")
    again = load_probe(tmp_path / "p.safetensors")
    assert (again.version, again.levels) == (probe.version, probe.levels)
    assert again.full_card["levels"] == TWO


def test_words_change_the_version_and_their_absence_does_not(make_probe: MAKES) -> None:
    plain = loaded()
    assert loaded(levels=TWO).version != plain.version
    assert loaded(levels=None).version == plain.version
    assert "levels" not in plain.full_card
    levels = (Level(name="any"),)
    assert make_probe(levels=levels, card={"levels": "stale"}).full_card["levels"] == [{"name": "any"}]


def test_the_embedded_probes_are_the_versions_that_they_were() -> None:
    assert {name: probe.version[7:15] for name, probe in load_probes(probes_dir()).items()} == {
        "asked-to-lie": "a9e0d9ff",
        "hallucination": "75979ae1",
        "truthfulness": "35f0f7a6",
    }


BAD: dict[str, Any] = {
    "none": [],
    "not a list": {"high": 0.9},
    "words alone": ["high", "low"],
    "rising": [{"name": "a", "at_least": 0.5}, {"name": "b", "at_least": 0.6}, {"name": "c"}],
    "equal": [{"name": "a", "at_least": 0.5}, {"name": "b", "at_least": 0.5}, {"name": "c"}],
    "no bound above": [{"name": "a"}, {"name": "b"}],
    "bound below": [{"name": "a", "at_least": 0.5}, {"name": "b", "at_least": 0.1}],
    "above 1": [{"name": "a", "at_least": 1.5}, {"name": "b"}],
    "below 0": [{"name": "a", "at_least": -0.5}, {"name": "b"}],
    "text": [{"name": "a", "at_least": "0.5"}, {"name": "b"}],
    "true": [{"name": "a", "at_least": True}, {"name": "b"}],
    "empty name": [{"name": ""}],
    "blank name": [{"name": " "}],
    "no name": [{"at_least": 0.5}, {"name": "b"}],
    "number for a name": [{"name": 3}],
    "same name": [{"name": "a", "at_least": 0.5}, {"name": "a"}],
    "more": [{"name": "a", "colour": "red"}],
}


@pytest.mark.parametrize("levels", BAD.values(), ids=BAD)
def test_bad_levels_are_refused_by_the_key(levels: Any) -> None:
    with pytest.raises(ArtefactError, match="levels"):
        loaded(levels=levels)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_bound_that_is_no_number_is_refused(text: str) -> None:
    card = json.dumps({**CARD, "levels": TWO}).replace("0.75", text)
    with pytest.raises(ArtefactError):
        probe_from_bytes(bytes(save({"weight.1": np.ones(4, np.float32)}, metadata={"pilothouse": card})))


def telling(scores: Any, logits: Any, aggregate: Any, alarm: Any, threshold: float) -> list[int]:
    (found,) = tellings(scores[None], logits[None], [(aggregate, alarm, threshold)])
    return found


def by_the_letter(scores: list[float], alarm: str, threshold: float) -> list[int]:
    """Tokens past the threshold, the worst first, at most five; of two alike the earlier."""
    sign = 1 if alarm == "high" else -1
    beyond = [j for j, score in enumerate(scores) if not math.isnan(score) and sign * (score - threshold) > 0]
    return sorted(beyond, key=lambda j: (-sign * scores[j], j))[:5]


token = st.one_of(st.just(math.nan), st.integers(1, 63).map(lambda i: i / 64))


@given(
    scores=st.lists(token, min_size=1, max_size=40),
    alarm=st.sampled_from(["high", "low"]),
    aggregate=st.sampled_from([a for a in get_args(Aggregate) if a != "prompt_end"]),
)
def test_reasons_are_the_worst_tokens_past_the_threshold(scores: list[float], alarm: Any, aggregate: Any) -> None:
    array = np.array(scores, dtype=np.float32)
    if not np.isfinite(array).any():
        return
    with np.errstate(invalid="ignore"):
        logits = np.log(array / (1 - array))
    found = telling(array, logits, aggregate, alarm, 0.5)
    known = [j for j, score in enumerate(scores) if not math.isnan(score)]
    worst_of_one = {"last": max(known), "min": np.nanargmin(array), "max": np.nanargmax(array)}
    if aggregate == "last" or (aggregate, alarm) in (("min", "high"), ("max", "low")):
        assert found == [worst_of_one[aggregate]]
    elif wanted := by_the_letter(scores, alarm, 0.5):
        assert found == wanted
    else:
        assert found
        assert set(found) <= set(known)


@given(st.data(), st.integers(1, 12), st.integers(1, 4))
def test_several_probes_tell_what_each_of_them_tells_alone(data: st.DataObject, n: int, k: int) -> None:
    numbers = st.integers(1, 7).map(lambda i: i / 8)
    # Probes that were read at different tokens, too; each at one at least, or it would not be flagged.
    row = st.lists(st.one_of(st.just(math.nan), numbers), min_size=n, max_size=n).filter(
        lambda r: not all(map(math.isnan, r))
    )
    scores = np.array(data.draw(st.lists(row, min_size=k, max_size=k)), dtype=np.float32)
    logits = np.log(scores / (1 - scores))
    kinds = st.tuples(
        st.sampled_from([a for a in get_args(Aggregate) if a != "prompt_end"]),
        st.sampled_from(["high", "low"]),
        numbers,
    )
    probes: Any = data.draw(st.lists(kinds, min_size=k, max_size=k))
    alone = [telling(scores[i], logits[i], *probe) for i, probe in enumerate(probes)]
    assert tellings(scores, logits, probes) == alone
    assert all(alone)


def test_tokens_that_are_past_it_only_in_the_choices_calibration_are_those_that_draw_it_there() -> None:
    logits = np.array([5, -0.1, 5, 5, 5, 5, -0.5, -2, -1, 3], dtype=np.float32)
    # None of the tokens' own scores, which have another calibration, is below the threshold.
    scores = np.array([0.95, 0.8, 0.95, 0.95, 0.95, 0.95, 0.8, 0.7, 0.75, 0.9], dtype=np.float32)
    # The moving average is at its worst at token 8, -0.44; three tokens are below that.
    assert telling(scores, logits, "worst_ema", "low", 0.6) == [7, 8, 6]
    assert telling(1 - scores, -logits, "worst_ema", "high", 0.6) == [7, 8, 6]
    logits[1], scores[1] = -6, 0.65
    # The mean is 1.85.
    assert telling(scores, logits, "mean", "low", 0.6) == [1, 7, 8, 6]
