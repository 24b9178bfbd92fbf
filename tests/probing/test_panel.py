"""A panel of probes says what each of its probes says for itself, to the last bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pilothouse.core.sites import Float32
from pilothouse.probing import Probe, ProbeStats
from pilothouse.probing.aggregation import moving_average, moving_averages, rolling_mean, rolling_means
from pilothouse.probing.calibration import Isotonic, Platt, Rectified
from pilothouse.probing.panel import Panel, panel_of

AGGREGATES = ["last", "mean", "min", "max", "worst_ema", "worst_rolling", "prompt_end"]

numbers = st.floats(-50, 50, width=32)
calibrations = st.one_of(
    st.none(),
    st.builds(Platt, a=st.floats(0.01, 8), b=st.floats(-4, 4)),
    st.builds(Rectified, threshold=st.floats(0, 2), unit=st.floats(0.1, 4)),
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 1)), min_size=1, max_size=5, unique_by=lambda knot: knot[0]).map(
        lambda knots: Isotonic(x=tuple(sorted(x for x, _ in knots)), y=tuple(sorted(y for _, y in knots)))
    ),
)
probes = st.builds(
    Probe,
    name=st.just("p"),
    label=st.just("bad"),
    alarm=st.sampled_from(["high", "low"]),
    aggregate=st.sampled_from(AGGREGATES),
    threshold=st.one_of(st.floats(0, 1), st.just(0.5)),
    weights=st.just({0: np.ones(2, np.float32)}),
    bias=st.floats(-3, 3),
    calibration=calibrations,
    token_calibration=calibrations,
)


@st.composite
def panels(draw: st.DrawFn) -> tuple[list[Probe], Float32, Float32]:
    """Some probes, their readouts [n, P] of generated tokens, of which some are not finite, and of the prompt's end."""
    chosen = draw(st.lists(probes, min_size=1, max_size=6))
    n = draw(st.one_of(st.integers(0, 3), st.integers(0, 150)))
    elements = draw(st.sampled_from([numbers, st.one_of(numbers, st.sampled_from([np.nan, np.inf, -np.inf]))]))
    raw = draw(arrays(np.float32, (n + 1, len(chosen)), elements=elements))
    if n and draw(st.booleans()):
        raw[draw(st.integers(0, n - 1))] = np.nan
    return chosen, raw[1:], raw[:1]


def alone(probe: Probe, raw: Float32) -> Float32:
    """Logits [n] of one probe's readouts, NaN where they are not finite."""
    logits = probe.logits(raw)
    return np.where(np.isfinite(logits), logits, np.float32(np.nan))


def finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def same(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours, theirs, strict=True)


@given(panels())
@settings(max_examples=400, deadline=None)
def test_every_number_is_the_probes_own(case: tuple[list[Probe], Float32, Float32]) -> None:
    chosen, raw, raw_end = case
    panel = Panel(chosen)
    logits, ends = panel.logits(raw), [finite(end) for end in panel.logits(raw_end)[0]]
    scores = panel.token_scores(logits)
    stats = panel.stats(logits, ends)
    wholes = panel.scores(stats)
    flagged = panel.flagged(wholes)
    for k, probe in enumerate(chosen):
        same(logits[:, k], alone(probe, raw[:, k]))
        same(scores[:, k], probe.token_scores(logits[:, k]))
        assert ends[k] == finite(alone(probe, raw_end[:, k])[0])
        assert stats[k] == probe.stats(logits[:, k], ends[k])
        assert wholes[k] == probe.score(stats[k])
        whole = wholes[k]
        assert flagged[k] is (whole is not None and probe.flagged(whole))


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 65, 300])
def test_many_rows_are_averaged_as_one_is(n: int) -> None:
    rows = np.random.default_rng(n).standard_normal((5, n)) * 10
    for ours, theirs in ((moving_averages(rows), moving_average), (rolling_means(rows), rolling_mean)):
        assert ours.shape == rows.shape
        for k, row in enumerate(rows):
            same(ours[k], theirs(row))


def test_sixty_four_probes_of_a_long_answer(make_probe: Any) -> None:
    rng = np.random.default_rng(5)
    chosen = [
        make_probe(
            bias=float(rng.standard_normal()),
            aggregate=AGGREGATES[k % len(AGGREGATES)],
            alarm="high" if k % 3 else "low",
            calibration=Platt(a=float(rng.uniform(0.1, 3)), b=0.5) if k % 2 else None,
        )
        for k in range(64)
    ]
    panel = Panel(chosen)
    logits = panel.logits(rng.standard_normal((2000, 64)).astype(np.float32))
    stats = panel.stats(logits, [0.25] * 64)
    assert stats == [probe.stats(np.ascontiguousarray(logits[:, k]), 0.25) for k, probe in enumerate(chosen)]
    assert panel.scores(stats) == [probe.score(found) for probe, found in zip(chosen, stats, strict=True)]


@pytest.mark.parametrize("n", [0, 1, 4])
def test_no_probes_at_all(n: int) -> None:
    panel = Panel([])
    logits = panel.logits(np.empty((n, 0), np.float32))
    assert panel.token_scores(logits).shape == (n, 0)
    stats = panel.stats(logits, [])
    assert (stats, panel.scores(stats), panel.flagged([])) == ([], [], [])


def test_where_nothing_was_scored_there_are_no_statistics(make_probe: Any) -> None:
    early = make_probe(aggregate="prompt_end")
    panel = Panel([make_probe(), early])
    for n in (0, 1, 3):
        stats = panel.stats(np.full((n, 2), np.nan, np.float32), [None, 1.5])
        assert stats == [ProbeStats(), ProbeStats(prompt_end=1.5)]
        assert panel.scores(stats) == [None, early.score(stats[1])]
        assert panel.flagged([None, None]) == [False, False]


def test_not_all_is_kept_for_ever(make_probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[Any, Panel] = {}
    monkeypatch.setattr("pilothouse.probing.panel._MAX_KEPT", 3)
    monkeypatch.setattr("pilothouse.probing.panel._kept", kept)
    often = panel_of([make_probe()])
    for n in range(9):
        panel_of([make_probe(bias=float(n + 1))])
        assert panel_of([make_probe()]) is often
    assert len(kept) == 3


def test_panels_are_kept_by_what_their_probes_say(make_probe: Any) -> None:
    first, second = make_probe(name="a"), make_probe(name="b")
    assert panel_of((first, second)) is panel_of((first, second))
    assert panel_of((first, second)) is panel_of((make_probe(name="a"), second))
    assert panel_of((first, second)) is not panel_of((second, first))
    changes: list[dict[str, Any]] = [{"threshold": 0.25}, {"bias": 0.125}, {"calibration": Platt(a=2, b=0)}]
    for change in changes:
        assert panel_of((replace(first, **change), second)) is not panel_of((first, second))
    # Beyond what a file keeps of a bias.
    assert panel_of((replace(first, bias=1e-30),)) is not panel_of((replace(first, bias=1e-50),))
