"""`vectors convert`, `vectors info`, `probes convert`, `sae convert` and places on the hub, from arguments to files."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_support.files import WRITERS, write, write_gguf, write_head, write_plain, write_svec
from huggingface_hub import constants
from sae_support.layouts import BY_KEY, D_IN, D_SAE, LAYOUTS, Layout, plain_sae
from sae_support.native import write_native
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from pilothouse.api.registry import Registry
from pilothouse.cli import serve
from pilothouse.cli.main import main
from pilothouse.core.config import ServerConfig
from pilothouse.core.directions import Direction
from pilothouse.core.errors import ArtefactError, StartupError
from pilothouse.core.sites import ModelShape
from pilothouse.probing import import_probe, load_probe, save_probe
from pilothouse.steering import Vector, import_vector, load_sae, load_vector, save_vector

ROWS = {1: np.arange(1, 5, dtype=np.float32), 2: np.ones(4, np.float32)}
SHAPE = ModelShape("org/tiny", 4, 6, tuple(range(6)))
DOCS = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pilothouse", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cached snapshot of org/repo in the hub's cache, offline."""
    repo, commit = tmp_path / "hub" / "models--org--repo", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo / "snapshots" / commit


@pytest.mark.parametrize("form", WRITERS)
def test_converting_a_vector(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    path = write(form, tmp_path / "theirs", ROWS)
    assert run(monkeypatch, "vectors", "convert", path) == 0
    assert load_vector(tmp_path / "happy.safetensors").digest == import_vector(path).digest
    options = [
        "--name",
        "glad",
        "--model",
        "org/tiny",
        "--layer-offset",
        "-1",
        "--layers",
        "0",
        "--out",
        "new/v.safetensors",
    ]
    assert run(monkeypatch, "vectors", "convert", path, *options) == 0
    vector = load_vector(tmp_path / "new" / "v.safetensors")
    assert (vector.name, vector.model, sorted(vector.direction.layers)) == ("glad", "org/tiny", [0])
    assert vector.direction.layers[0].tolist() == ROWS[1].tolist()
    vector.check_fits(SHAPE)


def test_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "vectors", "convert", write_svec(tmp_path / "v.svec", ROWS)) == 0
    said = capsys.readouterr().out
    assert "wrote v.safetensors: v, layers [1, 2]" in said
    assert "block whose output was read" in said
    assert "'llama'" in said


@pytest.mark.parametrize("form", WRITERS)
def test_info_reads_every_format(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(form, tmp_path, ROWS)
    assert run(monkeypatch, "vectors", "info", path, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["norms"]) == {"1", "2"}
    assert shown["card"]["source"]["file"] == path.name
    assert run(monkeypatch, "vectors", "info", path) == 0
    assert "source format" in capsys.readouterr().out


def test_a_source_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write_plain(tmp_path / "happy.safetensors", ROWS).read_bytes()
    assert run(monkeypatch, "vectors", "convert", "happy.safetensors") == 1
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "happy.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"hidden_size": 5, "num_hidden_layers": 6, "model_type": "llama"}, "5 wide"),
        ({"hidden_size": 4, "num_hidden_layers": 2, "model_type": "llama"}, "layers are 0 to 1"),
        ({"text_config": {"hidden_size": 5, "num_hidden_layers": 6}, "model_type": "llama"}, "5 wide"),
        ({"hidden_size": 4, "num_hidden_layers": 6, "model_type": "gemma"}, "type 'llama'"),
        ({"hidden_size": 4, "num_hidden_layers": 6, "model_type": "llama"}, None),
    ],
)
def test_the_shape_of_a_model_on_disk_is_checked(
    config: dict[str, Any],
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    path = write_svec(tmp_path / "v.svec", ROWS)
    assert run(monkeypatch, "vectors", "convert", path, "--model", tmp_path / "tiny") == (why is not None)
    assert (tmp_path / "v.safetensors").exists() == (why is None)
    assert (why or "") in capsys.readouterr().err


def test_converting_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_head(tmp_path / "head")
    assert run(monkeypatch, "probes", "convert", folder) == 0
    probe = load_probe(tmp_path / "head.safetensors")
    assert probe.version == import_probe(folder).version
    said = ["--name", "made-up", "--label", "made up", "--alarm", "low", "--aggregate", "mean", "--threshold", "0.25"]
    assert run(monkeypatch, "probes", "convert", folder, "--model", "org/tiny", *said) == 0
    probe = load_probe(tmp_path / "made-up.safetensors")
    assert (probe.label, probe.alarm, probe.aggregate, probe.threshold) == ("made up", "low", "mean", 0.25)
    probe.check_fits(SHAPE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.key)
def test_converting_an_sae(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = layout.write(tmp_path / "theirs")
    theirs = load_sae(path)
    assert run(monkeypatch, "sae", "convert", path) == 0
    said = capsys.readouterr().out
    assert f"wrote {theirs.name}.safetensors: {theirs.name}, layer {theirs.layer}, {D_SAE} features\n" in said
    assert ("read and clamp: yes" if layout.reads else f"read and clamp: no: {theirs.why_not_read}") in said
    factor = D_IN**0.5 / 6.25 if layout.key == "llama-scope" else 1
    rows = load_file(tmp_path / f"{theirs.name}.safetensors")["W_dec"]
    np.testing.assert_allclose(rows, plain_sae(D_IN, D_SAE)["W_dec"].numpy() / factor, rtol=1e-6)
    assert run(monkeypatch, "sae", "info", f"{theirs.name}.safetensors", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["format"], shown["name"], shown["layer"]) == ("pilothouse", theirs.name, theirs.layer)
    assert (shown["model"], shown["why_not_read"]) == (theirs.model, theirs.why_not_read)
    assert shown["config"]["config"]["source"]["digest"] == theirs.digest


def test_an_sae_from_the_hub_under_another_name(
    on_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BY_KEY["saelens"].write(on_hub)
    options = ["--name", "mine", "--out", "new/file.safetensors", "--dtype", "bfloat16"]
    assert run(monkeypatch, "sae", "convert", "hf://org/repo/sae", *options) == 0
    assert load_sae(tmp_path / "new/file.safetensors").name == "mine"
    assert (tmp_path / "new/file.safetensors").stat().st_size < 2 * 2 * D_IN * D_SAE + 2500
    capsys.readouterr()
    assert run(monkeypatch, "sae", "info", "new/file.safetensors") == 0
    said = capsys.readouterr().out
    for line in ("format: pilothouse", "layer: 3", f"features: {D_SAE}", "read and clamp: yes", "max_act: -"):
        assert f"  {line}\n" in said


def test_an_sae_is_not_written_over_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = BY_KEY["saelens"].write(tmp_path)
    ours = write_native(tmp_path / "mine.safetensors")
    before = weights.read_bytes(), ours.read_bytes()
    assert run(monkeypatch, "sae", "convert", weights.parent, "--out", weights) == 1
    assert run(monkeypatch, "sae", "convert", "mine.safetensors") == 1
    assert capsys.readouterr().err.count("--out") == 2
    assert (weights.read_bytes(), ours.read_bytes()) == before


def test_an_sae_that_cannot_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    assert run(monkeypatch, "sae", "convert", "nothing") == 1
    assert "no known format of SAE" in capsys.readouterr().err
    tensors = BY_KEY["goodfire"].tensors()
    tensors["decoder_linear.weight"][3, 5] = float("nan")
    path = BY_KEY["goodfire"].write(tmp_path / "theirs", tensors)
    assert run(monkeypatch, "sae", "convert", path, "--out", "out.safetensors") == 1
    assert "column 5 of decoder_linear.weight" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_head(tmp_path / "head") / "adapter_config.json").write_text("{}")
    assert run(monkeypatch, "probes", "convert", tmp_path / "head") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_sources_on_the_hub(on_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(on_hub / "happy.gguf", ROWS)
    write_head(on_hub / "head")
    assert run(monkeypatch, "vectors", "convert", "hf://org/repo/happy.gguf") == 0
    assert run(monkeypatch, "vectors", "info", "hf://org/repo/happy.gguf") == 0
    assert run(monkeypatch, "probes", "convert", "hf://org/repo@main/head") == 0
    assert load_vector(tmp_path / "happy.safetensors").direction.layers[2].tolist() == ROWS[2].tolist()
    save_probe(load_probe(tmp_path / "head.safetensors"), on_hub / "p.safetensors")
    assert run(monkeypatch, "probes", "info", "hf://org/repo/p.safetensors") == 0
    assert run(monkeypatch, "vectors", "info", "hf://org/nothing") == 1


def of_ours(folder: Path) -> None:
    save_vector(
        Vector("honest", Direction(ROWS), None, "resid_post", None, (1,), {}, None, {}), folder / "v.safetensors"
    )


def test_a_registry_from_the_hub(on_hub: Path) -> None:
    of_ours(on_hub / "vectors")
    save_probe(import_probe(write_head(on_hub / "head")), on_hub / "probes" / "p.safetensors")
    config = ServerConfig(vectors=("hf://org/repo/vectors",), probes=("hf://org/repo/probes/p.safetensors",))
    catalogue = Registry(config, SHAPE).catalogue
    assert (set(catalogue.vectors), set(catalogue.probes)) == ({"honest"}, {"head"})
    with pytest.raises(ArtefactError, match="hf://org/repo/saes"):
        Registry(ServerConfig(saes=("hf://org/repo/saes",)), SHAPE)


def test_serve_keeps_places_so_that_it_can_look_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = ["hf://org/repo/vectors", "s3://bucket/vectors", "zip://inside::s3://bucket/all.zip"]
    here = str(tmp_path / "vectors")
    assert serve._folders([*elsewhere, "vectors", f"file://{here}"], []) == (*elsewhere, here, here)
    assert serve._folders(None, [tmp_path]) == (str(tmp_path),)
    assert serve._here("uploads") == str(tmp_path / "uploads")
    with pytest.raises(StartupError, match="on this machine"):
        serve._here("s3://bucket/uploads")


def test_what_is_not_there_stops_the_start(on_hub: Path) -> None:
    with pytest.raises(ArtefactError, match="not whole in the cache"):
        Registry(ServerConfig(vectors=("hf://org/nothing",)), SHAPE)


def test_info_of_an_sae_on_the_hub(
    on_hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_native(on_hub / "sae.safetensors")
    assert run(monkeypatch, "sae", "info", "hf://org/repo/sae.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["d_sae"] == D_SAE


@pytest.mark.parametrize("kind", ["vectors", "probes"])
@pytest.mark.parametrize("name", ["happy.gguf", "happy.svec", "vec_layer_3.pt", "probe_head.bin", "p.joblib"])
def test_folders_of_other_libraries_are_not_passed_over(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_bytes(b"x")
    with pytest.raises(StartupError, match=f"{re.escape(name)}.*convert"):
        Registry(ServerConfig(**{kind: (str(tmp_path / "theirs"),)}), SHAPE)  # type: ignore[arg-type]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_the_converter_of_pickled_vectors_in_the_docs(tmp_path: Path) -> None:
    import pickle
    from types import SimpleNamespace

    import torch

    layers = {layer: torch.tensor(row, dtype=torch.bfloat16) for layer, row in ROWS.items()}
    pickled = pickle.dumps(SimpleNamespace(layer_activations=layers, layer_type="decoder_block"))
    (tmp_path / "vector.pkl").write_bytes(pickled)
    with pytest.raises(ArtefactError, match="pickle"):
        import_vector(tmp_path / "vector.pkl")
    exec(snippets()[1], {})
    vector = import_vector(tmp_path / "vector.safetensors")
    assert {n: row.tolist() for n, row in vector.direction.layers.items()} == {n: r.tolist() for n, r in ROWS.items()}


def test_the_writer_of_native_saes_in_the_docs(tmp_path: Path) -> None:
    import torch

    plain = plain_sae(D_IN, D_SAE)
    exec(snippets()[0], {"torch": torch, **plain})
    sae, h = load_sae(tmp_path / "mine.safetensors"), np.full(D_IN, 0.5, np.float32)
    wanted = (torch.tensor(h) - plain["b_dec"]) @ plain["W_enc"] + plain["b_enc"]
    for i in range(D_SAE):
        feature = sae.feature(i)
        assert feature.encoder is not None
        assert feature.threshold == 0
        assert h @ feature.encoder + feature.bias == pytest.approx(wanted[i].item(), rel=1e-4, abs=1e-4)


def test_the_converter_of_scikit_learn_in_the_docs(tmp_path: Path) -> None:
    import joblib

    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4)).astype(np.float32)
    model = LogisticRegression().fit(x, x[:, 0] > 0)
    joblib.dump(model, tmp_path / "probe.joblib")
    with pytest.raises(ArtefactError, match="pickle"):
        import_probe(tmp_path / "probe.joblib")
    exec(snippets()[2], {})
    probe = load_probe(tmp_path / "truth.safetensors")
    scores = probe.token_scores(probe.logits(x @ probe.direction.layers[12]))
    np.testing.assert_allclose(scores, model.predict_proba(x)[:, 1], atol=1e-5)
