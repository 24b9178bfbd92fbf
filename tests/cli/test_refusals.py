"""Start-up refuses what cannot work with one clear line, before any weights are loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig

from pilothouse.cli.main import main
from pilothouse.core.directions import Direction
from pilothouse.core.sites import SITE
from pilothouse.probing import Probe, save_probe
from pilothouse.steering import Vector, save_vector


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model without weights: refusals must not need them."""
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 512}
    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], max_position_embeddings=128)
    config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line; the last line that it wrote before it gave up."""
    # The command exports settings for vLLM's processes; they must not outlive the test.
    for name in ("VLLM_PLUGINS", "VLLM_USE_V2_MODEL_RUNNER", "PILOTHOUSE_CONFIG"):
        monkeypatch.setenv(name, "" if name == "VLLM_PLUGINS" else "0")
    monkeypatch.setattr(sys, "argv", ["pilothouse", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def vector(name: str, layer: int, width: int, model: str | None = None) -> Vector:
    row = np.ones(width, dtype=np.float32)
    return Vector(name, Direction({layer: row}), model, SITE, None, (layer,), {}, None, {})


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (vector("wide", 1, 65), "65"),
        (vector("deep", 4, 64), "4"),
        (vector("foreign", 1, 64, "another-model"), "another-model"),
    ],
    ids=["width", "layer", "model"],
)
def test_a_vector_that_does_not_fit(
    made: Vector,
    reason: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    save_vector(made, folder / "v.safetensors")
    line = refusal(monkeypatch, capsys, "serve", str(model), "--skip-tokenizer-init", "--vectors", str(folder))
    assert line.startswith("error: ")
    assert made.name in line
    assert reason in line


def test_a_probe_that_does_not_fit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    probe = Probe("narrow", "true", "low", "last", 0.5, weights={1: np.ones(63, dtype=np.float32)})
    save_probe(probe, folder / "p.safetensors")
    line = refusal(monkeypatch, capsys, "serve", str(model), "--skip-tokenizer-init", "--probes", str(folder))
    assert "narrow" in line
    assert "63" in line


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--speculative-config", '{"method": "ngram_gpu", "num_speculative_tokens": 2}'], "ngram_gpu"),
        (["--api-server-count", "0"], "headless"),
        (["--data-parallel-multi-port-external-lb"], "belong to one server"),
        (["--data-parallel-size", "2", "--data-parallel-rank", "0"], "--data-parallel-rank"),
        (["--data-parallel-hybrid-lb"], "--data-parallel-hybrid-lb"),
        (["--kv-events-config", '{"enable_kv_cache_events": true}'], "KV events"),
        (["--kv-offloading-size", "1"], "KV connectors"),
        (["--sites", "2,9"], "sites [9] do not exist"),
        (["--sites", "first"], "--sites takes layer numbers"),
        (["--scheduler-cls", "some.Other"], "--scheduler-cls is taken"),
        (["--default-probes", "nothing"], "nothing"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_cannot_work(
    flags: list[str],
    what: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert what in refusal(monkeypatch, capsys, "serve", str(model), "--skip-tokenizer-init", *flags)


def test_the_rust_front_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert "VLLM_USE_RUST_FRONTEND" in refusal(monkeypatch, capsys, "serve", str(model))


def test_cards_are_shown_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vector(vector("one", 2, 8), tmp_path / "v.safetensors")
    monkeypatch.setattr(sys, "argv", ["pilothouse", "vectors", "info", str(tmp_path / "v.safetensors"), "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["norms"] == {"2": pytest.approx(8**0.5)}
    assert shown["card"]["name"] == "one"


def test_a_file_that_is_no_vector_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.safetensors").write_bytes(b"nonsense")
    assert "v.safetensors" in refusal(monkeypatch, capsys, "vectors", "info", str(tmp_path / "v.safetensors"))
