from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.probing import Platt, Probe


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


MakeProbe = Callable[..., Probe]


def test_the_engines_readout_plus_offset_is_the_contracts_logit() -> None:
    rng = np.random.default_rng(1)
    layers, d = (1, 4, 5), 64
    weights, mean, std = (
        {layer: rng.normal(size=d).astype(np.float32) for layer in layers},
        {layer: rng.normal(20, 5, size=d).astype(np.float32) for layer in (1, 4)},
        {layer: rng.uniform(0.1, 9, size=d).astype(np.float32) for layer in (1, 5)},
    )
    probe = Probe("p", "true", "low", "last", 0.5, weights, 0.75, mean, std)
    stream = {layer: rng.normal(20, 5, size=(50, d)).astype(np.float32) for layer in layers}
    expected = np.full(50, 0.75)
    for layer in layers:
        centred = stream[layer].astype(np.float64) - mean.get(layer, np.zeros(d))
        expected += centred / std.get(layer, np.ones(d)) @ weights[layer]
    raw = sum(stream[layer] @ row for layer, row in probe.direction.layers.items())
    logits = probe.logits(np.asarray(raw, dtype=np.float32))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    # With the readout in float64 what remains is the folding itself.
    exact = sum(stream[layer].astype(np.float64) @ row for layer, row in probe.direction.layers.items()) + probe.offset
    np.testing.assert_allclose(exact, expected, atol=2e-5)


def test_a_plain_probe_is_its_weights(make_probe: MakeProbe) -> None:
    probe = make_probe(bias=-1.5)
    assert probe.direction.layers[3].tolist() == [1, -2, 0.5, 0]
    assert probe.offset == -1.5
    assert probe.direction is probe.direction


def test_what_was_not_read_stays_so(make_probe: MakeProbe) -> None:
    probe = make_probe(token_calibration=Platt(a=2.0, b=0.0), calibration=Platt(a=9.0, b=9.0))
    logits = probe.logits(f32([np.nan, 0.25]))
    assert np.isnan(logits).tolist() == [True, False]
    scores = probe.token_scores(logits)
    assert scores.dtype == np.float32
    # A token's score is by its own calibration, not by the aggregate's.
    assert scores[1] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert np.isnan(scores[0])


def test_a_tokens_score_is_the_sigmoid_without_a_calibration_of_its_own(make_probe: MakeProbe) -> None:
    probe = make_probe(calibration=Platt(a=9.0, b=9.0))
    assert probe.token_scores(f32([0.0])).tolist() == [0.5]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"threshold": 0.6},
        {"alarm": "high"},
        {"bias": 0.5},
        {"weights": {3: f32([1, -2, 0.5, 1e-20])}},
        {"weights": {2: f32([1, -2, 0.5, 0])}},
        {"std": {3: np.ones(4, np.float32)}},
        {"calibration": Platt(a=1.0, b=0.0)},
        {"token_calibration": Platt(a=1.0, b=0.0)},
        {"card": {"note": "x"}},
    ],
)
def test_whatever_changes_a_probe_changes_its_version(make_probe: MakeProbe, changes: dict[str, object]) -> None:
    assert make_probe().version == make_probe().version
    assert make_probe(**changes).version != make_probe().version


def test_it_fits_the_model_it_was_made_for(make_probe: MakeProbe) -> None:
    make_probe(model="tiny").check_fits(ModelShape("org/tiny", 4, 8, (3,)))
    for probe, shape, why in [
        (make_probe(model="big"), ModelShape("org/tiny", 4, 8, (3,)), "'big'"),
        (make_probe(), ModelShape("org/tiny", 5, 8, (3,)), "wide"),
        (make_probe(), ModelShape("org/tiny", 4, 3, (0, 1, 2)), "layers are"),
        (make_probe(), ModelShape("org/tiny", 4, 8, (2,)), "no site"),
    ]:
        with pytest.raises(ArtefactError, match=why):
            probe.check_fits(shape)
