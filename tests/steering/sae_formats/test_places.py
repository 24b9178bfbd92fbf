"""Which format lies at a path, and which layer and model an SAE belongs to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_support.layouts import BY_KEY, D_SAE, GEMMA, LAYOUTS, QWEN, Layout
from safetensors.torch import save_file

from pilothouse.core.errors import ArtefactError
from pilothouse.steering import load_sae, load_saes

EVERY = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.key)
PLACES = {
    "saelens": ("sae", 3, "org/tiny"),
    "gemma-scope": ("layer_20-width_16k-average_l0_71", 20, "google/gemma-2-2b"),
    "gemma-scope-2": ("layer_17_width_16k_l0_medium", 17, "google/gemma-3-4b-pt"),
    "llama-scope": ("Llama3_1-8B-Base-L15R-8x", 15, "meta-llama/Llama-3.1-8B"),
    "goodfire": ("Llama-3.1-8B-Instruct-SAE-l19", 19, "Llama-3.1-8B-Instruct"),
    "qwen-scope": ("SAE-Res-Qwen3-1.7B-Base-W32K-L0_50-layer5", 5, "Qwen/Qwen3-1.7B-Base"),
    "sparsify": ("layers.7", 7, "org/tiny"),
    "dict": ("resid_post_layer_3-trainer_0", 3, "org/tiny"),
}


def sidecar(folder: Path, **keys: Any) -> None:
    (folder / "pilothouse.json").write_text(json.dumps(keys))


def folder_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


@EVERY
def test_a_folder_its_file_and_what_is_above_it(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    name, layer, model = PLACES[layout.key.split(":")[0]]
    for sae in (load_sae(path), load_sae(folder_of(path)), *load_saes(path).values(), *load_saes(tmp_path).values()):
        assert (sae.name, sae.layer, sae.model) == (name, layer, model)
    assert load_sae(path, "mine").name == "mine"
    json.dumps(dict(load_sae(path).card), allow_nan=False)


@EVERY
def test_the_sidecar_names_and_places(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    layer = load_sae(path).layer
    sidecar(folder_of(path), name="chosen", model="org/tuned", layer=layer)
    sae = load_sae(path)
    assert (sae.name, sae.model, sae.layer) == ("chosen", "org/tuned", layer)
    sidecar(folder_of(path), layer=layer + 1)
    with pytest.raises(ArtefactError, match=f"pilothouse.json says layer {layer + 1}"):
        load_sae(path)


@pytest.mark.parametrize("layout", [BY_KEY["saelens"], BY_KEY["llama-scope"]], ids=lambda one: one.key)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"layers": 3}', "layers"),
        ('{"layer": -1}', "layer"),
        ('{"layer": "3"}', "layer"),
        ('{"site": "mlp_out"}', "site"),
        ('{"norm_scaling_factor": 0}', "norm_scaling_factor"),
        ('{"name": "a b"}', "name"),
        ('{"format": "gguf"}', "format: .*gemma-scope-2"),
        ("[]", "pilothouse.json"),
        ("{", "JSON"),
    ],
)
def test_a_sidecar_that_is_wrong(layout: Layout, content: str, why: str, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    (folder_of(path) / "pilothouse.json").write_text(content)
    with pytest.raises(ArtefactError, match=why):
        load_sae(path)


@EVERY
def test_a_factor_that_nothing_asks_for(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path)
    sidecar(folder_of(path), norm_scaling_factor=3.0)
    with pytest.raises(ArtefactError, match="norm_scaling_factor"):
        load_sae(path)


def test_a_factor_that_is_asked_for(tmp_path: Path) -> None:
    layout = BY_KEY["llama-scope"]
    known = load_sae(layout.write(tmp_path / "known")).feature(3)
    path = layout.write(tmp_path / "told", dataset_average_activation_norm=None)
    sidecar(folder_of(path), norm_scaling_factor=4 / 6.25)
    told = load_sae(path).feature(3)
    assert told.decoder.tolist() == known.decoder.tolist()
    assert (told.bias, told.threshold) == (known.bias, known.threshold)


@pytest.mark.parametrize(
    ("key", "folder", "file", "missing"),
    [
        ("gemma-scope", "layer_20/width_16k/average_l0_71", "params.npz", ("model", "site")),
        ("gemma-scope", "mine", "params.npz", ("layer", "model", "site")),
        ("goodfire", "mine", "goodfire.pt", ("layer", "model", "site")),
        ("qwen-scope", "mine", "layer5.sae.pt", ("model",)),
    ],
)
def test_what_the_path_does_not_say(key: str, folder: str, file: str, missing: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / folder / file
    path.parent.mkdir(parents=True)
    shutil.copy(BY_KEY[key].write(tmp_path / "published"), path)
    with pytest.raises(ArtefactError, match=r"into pilothouse\.json") as caught:
        load_sae(path)
    assert all((f'"{word}":' in str(caught.value)) == (word in missing) for word in ("layer", "model", "site"))
    facts: dict[str, Any] = {"layer": 20, "model": "org/tiny", "site": "resid_post"}
    sidecar(path.parent, **{word: facts[word] for word in missing})
    sae = load_sae(path)
    assert sae.model == "org/tiny"
    assert sae.layer == (5 if key == "qwen-scope" else 20)


def test_sparsify_without_its_run_and_dictionaries_without_their_module(tmp_path: Path) -> None:
    path = BY_KEY["sparsify"].write(tmp_path)
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(ArtefactError, match='write "model"'):
        load_sae(path)
    layout = BY_KEY["dict:AutoEncoder"]
    assert layout.config is not None
    trainer = {**layout.config[1]["trainer"], "submodule_name": None}
    assert load_sae(layout.write(tmp_path, trainer=trainer)).layer == 3
    path = shutil.copytree(folder_of(layout.write(tmp_path, trainer=trainer)), tmp_path / "mine")
    with pytest.raises(ArtefactError, match='write "site"'):
        load_sae(path)


@pytest.mark.parametrize(
    ("key", "published", "copy", "why"),
    [
        ("gemma-scope", GEMMA, GEMMA.replace("-res/", "-mlp/"), "'mlp'"),
        ("gemma-scope", GEMMA, GEMMA.replace("-res/", "-att/"), "'att'"),
        ("gemma-scope", GEMMA, GEMMA.replace("layer_20", "embedding"), "before any site"),
        ("sparsify", "run/layers.7", "run/layers.7.mlp", "not the output of a decoder block"),
        ("sparsify", "run/layers.7", "run/embed_tokens", "not the output of a decoder block"),
    ],
)
def test_paths_of_other_sites(key: str, published: str, copy: str, why: str, tmp_path: Path) -> None:
    BY_KEY[key].write(tmp_path)
    (tmp_path / copy).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / published).rename(tmp_path / copy)
    with pytest.raises(ArtefactError, match=why):
        load_sae(tmp_path / copy)


def test_gemma_scope_2_without_its_configuration(tmp_path: Path) -> None:
    path = BY_KEY["gemma-scope-2"].write(tmp_path)
    (path.parent / "config.json").unlink()
    sae = load_sae(path)
    assert (sae.layer, sae.model) == (17, "google/gemma-3-4b-pt")
    moved = path.parent.rename(tmp_path / "google/gemma-scope-2-4b-pt/layer_17_width_16k")
    with pytest.raises(ArtefactError, match='write "site"'):
        load_sae(moved)
    moved = moved.rename(tmp_path / "google/gemma-scope-2-4b-pt/attn_out")
    with pytest.raises(ArtefactError, match="attn_out"):
        load_sae(moved)


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    first = BY_KEY["qwen-scope"].write(tmp_path)
    shutil.copy(first, first.with_name("layer11.sae.pt"))
    with pytest.raises(ArtefactError, match=r"2 SAEs: layer11\.sae\.pt"):
        load_sae(first.parent)
    assert sorted(sae.layer for sae in load_saes(tmp_path).values()) == [5, 11]
    save_file({"max_act": torch.ones(D_SAE)}, first.parent / "max_acts.safetensors")
    with pytest.raises(ArtefactError, match="several SAEs share the folder"):
        load_sae(first)


def test_a_folder_of_two_formats_is_ambiguous_until_one_is_named(tmp_path: Path) -> None:
    one, other = BY_KEY["saelens"].write(tmp_path), BY_KEY["gemma-scope"].write(tmp_path)
    shutil.copy(other, one.parent)
    with pytest.raises(ArtefactError, match=r"2 SAEs: sae_weights\.safetensors \(SAELens\), params\.npz"):
        load_sae(one.parent)
    sidecar(one.parent, format="saelens")
    assert load_sae(one.parent).format == "saelens"


def test_a_renamed_file_is_of_the_format_that_its_sidecar_names(tmp_path: Path) -> None:
    path = BY_KEY["qwen-scope"].write(tmp_path)
    renamed = path.rename(path.with_name("mine.pt"))
    with pytest.raises(ArtefactError, match="no known format: it has the tensors W_dec, W_enc, b_dec, b_enc"):
        load_sae(renamed)
    sidecar(path.parent, format="qwen-scope", layer=5, site="resid_post")
    assert load_sae(renamed).layer == 5


def test_what_is_no_sae_is_named_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    for path, found in [(tmp_path, r"holds weights\.bin"), (tmp_path / "weights.bin", r"is called weights\.bin")]:
        with pytest.raises(ArtefactError, match=rf"{found}.*SAELens.*Gemma Scope.*Qwen Scope.*sparsify"):
            load_sae(path)
    with pytest.raises(ArtefactError, match="no such file"):
        load_sae(tmp_path / "absent")
    assert load_saes(tmp_path) == {}
    save_file({"direction": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtefactError, match="no known format of SAE below"):
        load_saes(tmp_path)


def test_names_are_taken_once_and_unfinished_folders_left_out(tmp_path: Path) -> None:
    path = BY_KEY["saelens"].write(tmp_path / "a")
    draft = shutil.copytree(path.parent, tmp_path / "a/run/draft")
    (draft.parent / "pilothouse-sae.txt").touch()
    assert list(load_saes(tmp_path)) == ["sae"]
    again = shutil.copytree(path.parent, tmp_path / "b/sae")
    with pytest.raises(ArtefactError, match="already called 'sae'"):
        load_saes(tmp_path)
    sidecar(again, name="other")
    assert sorted(load_saes(tmp_path)) == ["other", "sae"]


def test_files_that_are_links_keep_the_names_they_are_published_under(tmp_path: Path) -> None:
    path = BY_KEY["qwen-scope"].write(tmp_path)
    blob = path.rename(tmp_path / "4be3f1")
    path.symlink_to(blob)
    assert load_sae(path).layer == 5
    assert QWEN.split("/")[-1] in load_sae(path.parent).name


def test_folders_that_are_links_are_looked_into(tmp_path: Path) -> None:
    path = BY_KEY["saelens"].write(tmp_path / "elsewhere")
    (tmp_path / "saes").mkdir()
    (tmp_path / "saes/linked").symlink_to(path.parent)
    (tmp_path / "saes/circle").symlink_to(tmp_path / "saes")
    assert list(load_saes(tmp_path / "saes")) == ["sae"]
