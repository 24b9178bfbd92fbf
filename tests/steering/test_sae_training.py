"""Training on rows whose dictionary is known, checkpoints, and the folder that is written."""

import builtins
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pilothouse.core.errors import ArtefactError, StartupError
from pilothouse.core.sites import Float32
from pilothouse.steering import load_sae
from pilothouse.steering.sae_folder import finish_folder, write_draft
from pilothouse.steering.sae_measure import measure_sae
from pilothouse.steering.sae_pass import load_encoder
from pilothouse.steering.sae_run import hook_metadata
from pilothouse.steering.sae_settings import SaeSettings
from pilothouse.steering.sae_training import Batches, train_sae

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens

D_IN, TRUE, ACTIVE = 16, 20, 2
META = hook_metadata(3, "org/tiny", 64)


def planted(n: int, seed: int = 0) -> tuple[Float32, Any]:
    """n rows [n, 16], each the sum of two of 20 unit directions times 2 to 6, about a point far from 0."""
    rng = np.random.default_rng(seed)
    dictionary = np.random.default_rng(99).standard_normal((TRUE, D_IN))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    amounts = np.zeros((n, TRUE))
    chosen = np.argsort(rng.random((n, TRUE)), axis=1)[:, :ACTIVE]
    np.put_along_axis(amounts, chosen, rng.uniform(2, 6, (n, ACTIVE)), axis=1)
    return (amounts @ dictionary + 5).astype(np.float32), dictionary


def settings(architecture: Any = "topk", **changes: Any) -> SaeSettings:
    small = {"width": 24, "k": ACTIVE, "tokens": 60_000, "batch": 128, "rate": 1e-2}
    return SaeSettings(architecture, **{**small, **changes})


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_a_planted_dictionary_is_found_and_saelens_reads_it_back(tmp_path: Path, architecture: Any) -> None:
    rows, dictionary = planted(8000)
    told: list[tuple[int, int]] = []
    trained = train_sae(rows, settings(architecture), META, tmp_path / "w", progress=lambda *now: told.append(now))
    assert told[-1] == (trained.steps * 128, trained.steps * 128)
    assert len(told) == trained.steps == 468
    write_draft(trained.sae, tmp_path / "draft")
    encoder = load_encoder(tmp_path / "draft")
    train, held_out = measure_sae(encoder, rows), measure_sae(encoder, planted(3000, seed=1)[0])
    whole = finish_folder(tmp_path / "draft", tmp_path / "tiny", train, held_out, {"name": "tiny"})

    assert whole["held_out"]["explained_variance"] > 0.85
    assert whole["held_out"]["l0"] == pytest.approx(ACTIVE, abs=0.2)
    ours, theirs = load_sae(tmp_path / "tiny"), sae_lens.SAE.load_from_disk(tmp_path / "tiny")
    assert (ours.name, ours.layer, ours.d_in, ours.d_sae) == ("tiny", 3, D_IN, 24)
    assert (ours.architecture, theirs.cfg.architecture(), ours.model) == (architecture, architecture, "org/tiny")
    found = np.stack([ours.decoder_row(i) for i in range(24)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    best = (found @ dictionary.T).max(axis=0)
    assert (best > 0.97).mean() >= 0.9, best
    with torch.no_grad():
        acts = theirs.encode(torch.from_numpy(rows))
        silent, active = theirs.decode(torch.zeros(1, 24)), theirs.decode(acts[:1])
        # What the trainer held is what the file holds.
        np.testing.assert_allclose(trained.sae(torch.from_numpy(rows)), theirs(torch.from_numpy(rows)), atol=1e-3)
    sparse = acts[0].numpy()
    np.testing.assert_allclose((active - silent)[0].numpy(), sparse @ found, atol=1e-4)
    for feature in range(24):
        largest = float(acts[:, feature].max())
        assert ours.max_act(feature) == (pytest.approx(largest, rel=1e-4) if largest > 0 else None)


def test_what_is_written_beside_the_weights(tmp_path: Path) -> None:
    rows, _ = planted(2000)
    trained = train_sae(rows, settings(tokens=6000), META, tmp_path / "w")
    write_draft(trained.sae, tmp_path / "draft")
    encoder = load_encoder(tmp_path / "draft")
    train, held_out = measure_sae(encoder, rows), measure_sae(encoder, rows[:50])
    whole = finish_folder(tmp_path / "draft", tmp_path / "s", train, held_out, {"curve": trained.curve})
    cfg = json.loads((tmp_path / "s" / "cfg.json").read_text())
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert cfg["normalize_activations"] == "none"
    assert cfg["metadata"]["held_out"]["explained_variance"] == held_out.explained_variance
    assert len({path.stat().st_mode for path in (tmp_path / "s").iterdir()}) == 1
    statistics = load_file(tmp_path / "s" / "feature_stats.safetensors")
    np.testing.assert_array_equal(statistics["max_act"], train.max_act)
    np.testing.assert_array_equal(statistics["frequency"], (train.fired / 2000).astype(np.float32))
    assert json.loads((tmp_path / "s" / "report.json").read_text()) == whole
    curve = whole["curve"]
    assert (curve[-1]["step"], curve[-1]["tokens"]) == (46, 46 * 128)
    assert curve[-1]["mse"] < curve[0]["mse"]
    assert {point["l0"] for point in curve} == {ACTIVE}
    with pytest.raises(ArtefactError, match="exists already"):
        finish_folder(tmp_path / "draft", tmp_path / "s", train, held_out, {})


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_a_training_stopped_anywhere_ends_like_one_that_was_not(tmp_path: Path, architecture: Any) -> None:
    rows, _ = planted(1000)
    asked = settings(architecture, tokens=40 * 128)
    whole = train_sae(rows, asked, META, tmp_path / "whole")

    def stop_at(step: int) -> Any:
        def progress(done: int, total: int) -> None:
            if done >= step * 128:
                raise KeyboardInterrupt

        return progress

    for step in (3, 17, 31):
        with pytest.raises(KeyboardInterrupt):
            train_sae(rows, asked, META, tmp_path / "parts", progress=stop_at(step), seconds=0.0)
        assert [path.name for path in (tmp_path / "parts").glob("step-*")] == [f"step-{step:09d}"]
    seen: list[int] = []
    parts = train_sae(rows, asked, META, tmp_path / "parts", progress=lambda done, total: seen.append(done))
    assert seen[0] == 32 * 128
    for resumed, straight in zip(parts.curve, whole.curve, strict=True):
        assert resumed == pytest.approx(straight, rel=1e-5, abs=1e-6)
    assert [point["step"] for point in parts.curve] == list(range(1, 41))
    for name, tensor in whole.sae.state_dict().items():
        torch.testing.assert_close(parts.sae.state_dict()[name], tensor, rtol=0, atol=1e-6)
    again = train_sae(rows, asked, META, tmp_path / "parts", progress=lambda done, total: seen.append(-1))
    assert -1 not in seen
    torch.testing.assert_close(again.sae.W_dec, parts.sae.W_dec, rtol=0, atol=0)
    with pytest.raises(ArtefactError, match="another seed"):
        train_sae(rows, settings(architecture, tokens=40 * 128, seed=5), META, tmp_path / "parts")
    fresh = train_sae(rows, settings(architecture, tokens=128, seed=5), META, tmp_path / "parts", resume=False)
    assert fresh.steps == 1


def test_between_checkpoints_nothing_is_written(tmp_path: Path) -> None:
    rows, _ = planted(500)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(rows, settings(), META, tmp_path / "w", progress=stop, seconds=1e9)
    assert not list((tmp_path / "w").glob("step-*"))


def test_batches_take_every_row_once_an_epoch_in_an_order_of_the_seed() -> None:
    rows = np.arange(103, dtype=np.float16)[:, None]
    batches = Batches(rows, 10, seed=1)
    epochs = [np.concatenate([batches[step] for step in range(e * 10, e * 10 + 10)])[:, 0] for e in range(2)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 100
    assert epochs[0].dtype == np.float32
    assert epochs[0].tolist() != epochs[1].tolist()
    np.testing.assert_array_equal(Batches(rows, 10, seed=1)[17], batches[17])
    assert Batches(rows, 10, seed=2)[0].tolist() != Batches(rows, 10, seed=1)[0].tolist()
    assert Batches(rows[:4], 10, seed=0)[9].shape == (4, 1)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="diverged"):
        train_sae(planted(500)[0], settings(rate=1e38, tokens=128 * 200), META, tmp_path / "w")


def test_rows_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="same at every token"):
        train_sae(np.ones((50, 4), dtype=np.float32), settings(), META, tmp_path / "w")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"width": 0}, "--width"),
        ({"width": -5}, "--width"),
        ({"k": 0}, "--k"),
        ({"k": 25}, "more than the 24 features"),
        ({"tokens": 0}, "--tokens"),
        ({"batch": 0}, "--batch"),
        ({"rate": 0.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"seed": -1}, "--seed"),
        ({"architecture": "gated"}, "topk or jumprelu"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(StartupError, match=why):
        settings(**changes)


def test_the_learning_rate_falls_with_the_root_of_the_width() -> None:
    assert SaeSettings(width=2**14).learning_rate == pytest.approx(2e-4)
    assert SaeSettings(width=2**12).learning_rate == pytest.approx(4e-4)
    assert SaeSettings(width=2**12, rate=0.1).learning_rate == 0.1


def test_without_saelens_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "sae_lens":
            raise ModuleNotFoundError("No module named 'sae_lens'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(StartupError, match=r"pip install 'pilothouse\[sae\]'"):
        train_sae(planted(50)[0], settings(), META, tmp_path / "w")


def test_a_folder_that_saelens_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    save_file({"W_dec": np.zeros((2, 2), dtype=np.float32)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ArtefactError, match="SAELens cannot load"):
        load_encoder(tmp_path)
