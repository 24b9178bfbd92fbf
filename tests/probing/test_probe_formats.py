"""Heads of hallucination_probes: the same logits as the published module gives, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_support.files import write_head

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import ModelShape
from pilothouse.probing import ProbeOptions, import_probe, load_probe, save_probe

SHAPE = ModelShape("org/tiny", 4, 6, (0, 1, 2, 3))
CONFIG = {"target_layer_name": "LlamaDecoderLayer", "layer_idx": 2, "hidden_size": 4}


def test_logits_are_those_of_the_head(tmp_path: Path) -> None:
    folder = write_head(tmp_path / "llama-3 linear")
    probe = import_probe(folder)
    head = torch.nn.Linear(4, 1)
    head.load_state_dict(torch.load(folder / "probe_head.bin", weights_only=True))
    stream = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    with torch.no_grad():
        logits = head(torch.from_numpy(stream))[:, 0]
    ours = probe.logits(stream @ probe.direction.layers[2])
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(probe.token_scores(ours), torch.sigmoid(logits).numpy(), atol=1e-6)
    stats = probe.stats(ours, None)
    assert probe.score(stats) == pytest.approx(float(torch.sigmoid(logits).max()), abs=1e-6)
    probe.check_fits(SHAPE)


def test_what_a_head_says_of_itself_and_what_it_does_not(tmp_path: Path) -> None:
    probe = import_probe(write_head(tmp_path / "llama-3 linear"))
    assert (probe.name, probe.label, probe.alarm, probe.aggregate) == ("llama-3-linear", "hallucination", "high", "max")
    assert (probe.threshold, probe.calibration, probe.token_calibration, probe.model) == (0.5, None, None, None)
    assert (sorted(probe.weights), probe.bias) == ([2], -0.75)
    source = probe.card["source"]
    assert set(source["files"]) == {"probe_config.json", "probe_head.bin"}
    assert "0-based" in source["convention"]
    said = ProbeOptions("made-up", "org/tiny", "made up", "low", "mean", 0.75)
    probe = import_probe(tmp_path / "llama-3 linear", said)
    assert (probe.name, probe.model, probe.label) == ("made-up", "org/tiny", "made up")
    assert (probe.alarm, probe.aggregate, probe.threshold) == ("low", "mean", 0.75)


@pytest.mark.parametrize("name", ["", "probe_head.bin", "probe_config.json"])
def test_what_is_converted_loads_as_ours(name: str, tmp_path: Path) -> None:
    probe = import_probe(write_head(tmp_path / "head") / name)
    save_probe(probe, tmp_path / "p.safetensors")
    again = load_probe(tmp_path / "p.safetensors")
    assert again.version == probe.version
    assert again.card["source"] == probe.card["source"]
    assert again.full_card["token_calibration"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.0, -0.333, 3.0, 6e-5]], dtype=dtype), "bias": torch.tensor([0.1], dtype=dtype)}
    probe = import_probe(write_head(tmp_path / "head", state=state))
    assert probe.weights[2].tolist() == state["weight"][0].float().tolist()
    assert probe.bias == float(state["bias"][0])


@pytest.mark.parametrize("name", ["model.layers.3", "transformer.h.3", "layers.3"])
def test_the_layer_in_a_name(name: str, tmp_path: Path) -> None:
    config = {"target_layer_name": name, "hidden_size": 4}
    assert sorted(import_probe(write_head(tmp_path / "head", config)).weights) == [3]
    with pytest.raises(ArtefactError, match=f"layer_idx 2.*{name}"):
        import_probe(write_head(tmp_path / "head", {**config, "layer_idx": 2}))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"layer_idx": 2}, "no hidden_size"),
        ({"hidden_size": 4, "target_layer_name": "LlamaDecoderLayer"}, "no layer_idx"),
        ({**CONFIG, "hidden_size": 8}, "4 wide.*hidden_size 8"),
        ({**CONFIG, "layer_idx": -1}, "layer_idx -1"),
        ({**CONFIG, "layer_idx": 2.0}, "layer_idx 2.0"),
        ({**CONFIG, "layer_idx": True}, "layer_idx True"),
        ([], "JSON object"),
    ],
)
def test_bad_configurations(config: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why):
        import_probe(write_head(tmp_path / "head", config))


ROW, BIAS = torch.ones(1, 4), torch.zeros(1)
BAD_STATES: dict[str, tuple[Any, str]] = {
    "transposed": ({"weight": ROW.T, "bias": BIAS}, "transposed"),
    "two outputs": ({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, r"\[2, 4\]"),
    "one dimension": ({"weight": ROW[0], "bias": BIAS}, r"\[4\]"),
    "no bias": ({"weight": ROW}, "weight and bias"),
    "two biases": ({"weight": ROW, "bias": torch.zeros(2)}, "bias.*one number"),
    "bias without dimension": ({"weight": ROW, "bias": torch.tensor(0.0)}, "bias"),
    "hidden layer": ({"net.0.weight": ROW, "net.0.bias": BIAS}, r"net\.0"),
    "a tensor": (ROW, "a Tensor"),
    "nan": ({"weight": ROW * np.nan, "bias": BIAS}, "NaN"),
    "infinite bias": ({"weight": ROW, "bias": BIAS + np.inf}, "NaN or infinite"),
    "whole numbers": ({"weight": ROW.int(), "bias": BIAS}, "int32"),
    "an object": ({"weight": Path("x"), "bias": BIAS}, "pickle"),
}


@pytest.mark.parametrize(("state", "why"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_heads(state: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why) as caught:
        import_probe(write_head(tmp_path / "head", state=state))
    assert str(tmp_path / "head") in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_changes_what_the_model_says(name: str, tmp_path: Path) -> None:
    (write_head(tmp_path / "head") / name).write_text("{}")
    with pytest.raises(ArtefactError, match="LoRA adapter, which changes"):
        import_probe(tmp_path / "head")


@pytest.mark.parametrize("name", ["probe_head.bin", "probe_config.json"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut short"])
def test_damaged_folders(name: str, fault: str, tmp_path: Path) -> None:
    file = write_head(tmp_path / "head") / name
    data = file.read_bytes()
    file.unlink() if fault == "missing" else file.write_bytes(data[: len(data) // 2 if fault == "cut short" else 0])
    with pytest.raises(ArtefactError, match="head"):
        import_probe(tmp_path / "head")


@pytest.mark.parametrize("name", ["probe.joblib", "probe.pkl", "probe"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"coef_": [1.0]}))
    with pytest.raises(ArtefactError, match=r"Python pickle.*docs/formats\.md"):
        import_probe(tmp_path / name)


def test_other_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({}))
    with pytest.raises(ArtefactError, match="known format"):
        import_probe(tmp_path / "p.json")
    with pytest.raises(ArtefactError, match="neither"):
        import_probe(tmp_path)
    with pytest.raises(ArtefactError, match="absent"):
        import_probe(tmp_path / "absent")


@pytest.mark.parametrize("said", [{"threshold": 1.5}, {"label": ""}, {"threshold": float("nan")}])
def test_options_that_cannot_be(said: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=next(iter(said))):
        ProbeOptions(**said)


@pytest.mark.parametrize(
    ("layer", "model", "why"), [(9, None, "layer 9"), (4, None, "no site"), (2, "org/other", "org/other")]
)
def test_what_does_not_fit_the_model(layer: int, model: str | None, why: str, tmp_path: Path) -> None:
    folder = write_head(tmp_path / "head", {"layer_idx": layer, "hidden_size": 4})
    with pytest.raises(ArtefactError, match=why):
        import_probe(folder, ProbeOptions(model=model)).check_fits(SHAPE)
