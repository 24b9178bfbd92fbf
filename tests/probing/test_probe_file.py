import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.probing import Isotonic, Platt, Probe, load_probe, load_probes, probe_from_bytes, save_probe


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


CARD: dict[str, Any] = {
    "format": 1,
    "kind": "probe",
    "name": "truth",
    "label": "true",
    "alarm": "low",
    "aggregate": "worst_ema",
    "threshold": 0.5,
}
ROW = f32([1, 2, 3, 4])


def a_file(tensors: dict[str, Any] | None = None, **card: Any) -> bytes:
    rows = {"weight.2": ROW} if tensors is None else tensors
    kept = {key: value for key, value in {**CARD, **card}.items() if value is not ...}
    return bytes(save(rows, metadata={"pilothouse": json.dumps(kept)}))


def test_the_required_keys_are_enough() -> None:
    probe = probe_from_bytes(a_file())
    assert (probe.name, probe.label, probe.alarm, probe.aggregate) == ("truth", "true", "low", "worst_ema")
    assert (probe.threshold, probe.bias, probe.model) == (0.5, 0.0, None)
    assert (probe.calibration, probe.token_calibration) == (None, None)
    assert probe.weights[2].tolist() == ROW.tolist()
    assert not probe.mean
    assert not probe.std
    assert probe.card == CARD


def test_a_full_file() -> None:
    tensors = {
        "weight.2": ROW,
        "weight.5": ROW * 2,
        "mean.2": ROW - 1,
        "std.5": ROW * 4,
        "bias": f32([-0.5]),
    }
    probe = probe_from_bytes(
        a_file(
            tensors,
            model="org/tiny",
            site="resid_post",
            threshold=1,
            calibration={"kind": "platt", "a": 1.5, "b": -2},
            token_calibration={"kind": "isotonic", "x": [-1, 0.5], "y": [0, 1]},
            metrics={"auroc": 0.9},
        )
    )
    assert probe.calibration == Platt(a=1.5, b=-2.0)
    assert probe.token_calibration == Isotonic(x=(-1.0, 0.5), y=(0.0, 1.0))
    assert probe.direction.layers[5].tolist() == [0.5] * 4
    assert probe.offset == -0.5 - float((ROW - 1) @ ROW)
    assert probe.card["metrics"] == {"auroc": 0.9}


rows = hnp.arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32))
positive = hnp.arrays(np.float32, 3, elements=st.floats(2**-10, 1e6, width=32))
platts = st.builds(Platt, a=st.floats(1e-6, 1e6), b=st.floats(-1e6, 1e6))
isotonics = st.lists(st.tuples(st.integers(-9, 9), st.floats(0, 1)), min_size=1, unique_by=lambda knot: knot[0]).map(
    lambda knots: Isotonic(x=tuple(float(x) for x in sorted(x for x, _ in knots)), y=tuple(sorted(y for _, y in knots)))
)


@given(
    weights=st.dictionaries(st.integers(0, 40), rows, min_size=1, max_size=3),
    means=st.lists(rows, min_size=3, max_size=3),
    stds=st.lists(positive, min_size=3, max_size=3),
    bias=st.floats(-1e6, 1e6, width=32),
    calibrations=st.tuples(st.none() | platts | isotonics, st.none() | platts | isotonics),
    label=st.text(st.characters(codec="utf-8"), min_size=1),
    threshold=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_saving_and_loading_keeps_the_version(
    tmp_path_factory: pytest.TempPathFactory,
    weights: dict[int, Float32],
    means: list[Float32],
    stds: list[Float32],
    bias: float,
    calibrations: tuple[Platt | Isotonic | None, Platt | Isotonic | None],
    label: str,
    threshold: float,
) -> None:
    path = tmp_path_factory.mktemp("probes") / "p.safetensors"
    probe = Probe(
        name="p",
        label=label,
        alarm="high",
        aggregate="mean",
        threshold=threshold,
        weights=weights,
        bias=bias,
        mean=dict(zip(weights, means, strict=False)),
        std=dict(zip(sorted(weights), stds, strict=False)),
        calibration=calibrations[0],
        token_calibration=calibrations[1],
        model="org/tiny",
        card={"note": label},
    )
    save_probe(probe, path)
    again = load_probe(path)
    assert again.version == probe.version
    assert again.direction.digest == probe.direction.digest
    assert again.offset == probe.offset
    assert (again.calibration, again.token_calibration) == calibrations
    assert (again.label, again.threshold, again.card["note"]) == (label, threshold, label)


WIDE = np.ones(5, np.float32)
BAD_TENSORS: dict[str, dict[str, Any]] = {
    "no weights": {"bias": np.ones(1, np.float32)},
    "nothing": {},
    "zero in std": {"weight.2": ROW, "std.2": f32([1, 0, 1, 1])},
    "negative std": {"weight.2": ROW, "std.2": -ROW},
    "tiny std": {"weight.2": ROW * 1e30, "std.2": ROW * 1e-30},
    "mean without weight": {"weight.2": ROW, "mean.3": ROW},
    "std without weight": {"weight.2": ROW, "std.3": ROW},
    "two widths": {"weight.2": ROW, "weight.3": WIDE},
    "wide mean": {"weight.2": ROW, "mean.2": WIDE},
    "wide std": {"weight.2": ROW, "std.2": WIDE},
    "two biases": {"weight.2": ROW, "bias": np.ones(2, np.float32)},
    "scalar bias": {"weight.2": ROW, "bias": np.ones((), np.float32)},
    "unknown": {"weight.2": ROW, "scale": ROW},
    "unknown by layer": {"weight.2": ROW, "scale.2": ROW},
    "leading zero": {"weight.02": ROW},
    "nan": {"weight.2": ROW * np.float32(np.nan)},
    "infinite mean": {"weight.2": ROW, "mean.2": ROW * np.float32(np.inf)},
    "nan bias": {"weight.2": ROW, "bias": f32([np.nan])},
    "several directions": {"weight.2": np.ones((2, 4), np.float32)},
    "float64": {"weight.2": np.ones(4)},
}


@pytest.mark.parametrize("tensors", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError):
        probe_from_bytes(a_file(tensors))


BAD_CARDS: dict[str, dict[str, Any]] = {
    **{f"no {key}": {key: ...} for key in CARD},
    "a vector": {"kind": "vector"},
    "format 2": {"format": 2},
    "empty label": {"label": ""},
    "alarm": {"alarm": "both"},
    "aggregate": {"aggregate": "median"},
    "threshold above": {"threshold": 1.01},
    "threshold below": {"threshold": -0.01},
    "threshold text": {"threshold": "0.5"},
    "site": {"site": "resid_pre"},
    "calibration kind": {"calibration": {"kind": "beta"}},
    "no kind": {"calibration": {"a": 1, "b": 0}},
    "platt without b": {"calibration": {"kind": "platt", "a": 1}},
    "platt that falls": {"calibration": {"kind": "platt", "a": -1, "b": 0}},
    "platt and more": {"calibration": {"kind": "platt", "a": 1, "b": 0, "c": 0}},
    "knots that fall": {"token_calibration": {"kind": "isotonic", "x": [1, 0], "y": [0, 1]}},
    "knots of text": {"token_calibration": {"kind": "isotonic", "x": ["0", "1"], "y": [0, 1]}},
}


@pytest.mark.parametrize("card", BAD_CARDS.values(), ids=BAD_CARDS)
def test_bad_cards_are_refused_by_the_key_that_is_wrong(card: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=next(iter(card))):
        probe_from_bytes(a_file(**card))


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_end_in_an_artefact_error(data: bytes) -> None:
    with pytest.raises(ArtefactError):
        probe_from_bytes(data)


@given(edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_is_refused_or_still_a_sound_probe(edits: list[tuple[int, int]]) -> None:
    data = bytearray(
        a_file(
            {"weight.2": ROW, "std.2": ROW, "mean.2": ROW, "bias": np.ones(1, np.float32)},
            calibration={"kind": "isotonic", "x": [0, 1], "y": [0.25, 0.75]},
        )
    )
    for at, value in edits:
        data[at % len(data)] = value
    try:
        probe = probe_from_bytes(bytes(data))
    except ArtefactError:
        return
    stats = probe.stats(probe.logits(f32([0.5])), prompt_end=0.0)
    score = probe.score(stats)
    assert score is not None
    assert 0 <= score <= 1
    assert probe.version.startswith("sha256:")


def test_folders_and_files_are_named_in_errors(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(a_file())
    (tmp_path / "two.safetensors").write_bytes(a_file(name="lies"))
    assert list(load_probes(tmp_path)) == ["truth", "lies"]
    (tmp_path / "three.safetensors").write_bytes(a_file(name="lies"))
    with pytest.raises(ArtefactError, match=r"two\.safetensors.*'lies'"):
        load_probes(tmp_path)
    (tmp_path / "three.safetensors").write_bytes(a_file(alarm="up"))
    with pytest.raises(ArtefactError, match=r"three\.safetensors.*alarm"):
        load_probes(tmp_path)
    with pytest.raises(ArtefactError, match="absent"):
        load_probe(tmp_path / "absent.safetensors")
