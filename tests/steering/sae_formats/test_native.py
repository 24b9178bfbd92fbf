"""The native form: what is read from a file, what is refused, and how it is told from other formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_support.layouts import BY_KEY, D_IN, D_SAE
from sae_support.native import CARD, native_tensors, write_native
from safetensors.torch import save_file

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import ModelShape
from pilothouse.steering import load_sae, load_saes, sae_from_upload
from pilothouse.steering.sae_formats import tensors

Load = Callable[[Path], Any]
BOTH = pytest.mark.parametrize("load", [load_sae, sae_from_upload], ids=["load", "upload"])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_are_what_the_tensors_say(load: Load, dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in native_tensors().items()}
    sae = load(write_native(tmp_path / "any.safetensors", stored))
    assert (sae.name, sae.layer, sae.model, sae.d_in, sae.d_sae) == ("mine", 3, "org/tiny", D_IN, D_SAE)
    assert (sae.format, sae.architecture, sae.activation) == ("pilothouse", "jumprelu", "jumprelu")
    assert sae.card["config"] == {"from": "a test"}
    for i in range(D_SAE):
        feature = sae.feature(i)
        assert feature.decoder.dtype == feature.encoder.dtype == np.float32
        assert feature.decoder.tolist() == stored["W_dec"][i].tolist()
        assert feature.encoder.tolist() == stored["W_enc"][i].tolist()
        assert (feature.bias, feature.threshold) == (stored["b_enc"][i].item(), stored["threshold"][i].item())
        assert feature.max_act == (stored["max_act"][i].item() or None)
    sae.check_fits(ModelShape("copies/tiny", D_IN, 4, (3,)))
    with pytest.raises(ArtefactError, match="wide"):
        sae.check_fits(ModelShape("org/tiny", D_IN * 2, 4, (3,)))


@BOTH
def test_a_file_of_a_decoder_alone(load: Load, tmp_path: Path) -> None:
    only = {"W_dec": native_tensors()["W_dec"]}
    sae = load(write_native(tmp_path / "a.safetensors", only, why_not_read="top-k", model=None, config=None))
    assert (sae.why_not_read, sae.model, sae.max_acts) == ("top-k", None, None)
    feature = sae.feature(4)
    assert (feature.encoder, feature.max_act) == (None, None)
    assert feature.decoder.tolist() == only["W_dec"][4].tolist()


def spoilt(name: str, value: float) -> Any:
    def spoil(stored: dict[str, torch.Tensor]) -> None:
        stored[name] = stored[name].clone()
        stored[name][7] = value

    return spoil


def becomes(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def spoil(stored: dict[str, torch.Tensor]) -> None:
        stored[name] = change(stored[name]).contiguous()

    return spoil


def without(*left_out: str) -> Any:
    def spoil(stored: dict[str, torch.Tensor]) -> None:
        for name in left_out:
            del stored[name]

    return spoil


@BOTH
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (becomes("W_dec", torch.t), "W_dec is .16, 40.*transposed"),
        (becomes("W_enc", torch.t), "W_enc is .16, 40.*transposed"),
        (becomes("W_enc", lambda t: t[:, :-1]), "W_enc is .40, 15."),
        (becomes("W_dec", torch.flatten), r"W_dec is \[640\], but must be \[d_sae, d_in\]"),
        (becomes("W_dec", lambda t: t[:0]), "W_dec is .0, 16."),
        (becomes("W_dec", lambda t: t[:-1]), "W_dec is .39, 16., but b_enc has 40 features"),
        (becomes("threshold", lambda t: t[:-1]), r"threshold is \[39\], but must be \[40\]"),
        (becomes("threshold", lambda t: t[0]), r"threshold is \[\]"),
        (becomes("max_act", lambda t: t[:-1]), r"max_act is \[39\]"),
        (becomes("b_enc", lambda t: t[None]), r"b_enc is \[1, 40\]"),
        (becomes("W_dec", torch.Tensor.double), "'W_dec' must be float32, float16 or bfloat16, not F64"),
        (becomes("threshold", torch.Tensor.int), "'threshold' must be float32, float16 or bfloat16, not I32"),
        (without("W_dec"), "no tensor W_dec"),
        (without("W_enc"), "no tensor W_enc: W_enc, b_enc, threshold come together"),
        (without("b_enc", "threshold"), "no tensor b_enc"),
        (without("W_enc", "b_enc", "threshold"), "why_not_read"),
        (lambda stored: stored.update(b_dec=torch.zeros(D_IN)), "tensor 'b_dec' is unknown"),
        (spoilt("b_enc", float("nan")), "b_enc holds NaN"),
        (spoilt("threshold", float("inf")), "threshold holds NaN or infinite"),
        (spoilt("max_act", float("nan")), "max_act holds NaN"),
        (spoilt("threshold", -0.5), "threshold must not be negative, but is for feature 7"),
        (spoilt("max_act", -1), "max_act must not be negative, but is for feature 7"),
    ],
)
def test_tensors_that_are_wrong(load: Load, spoil: Any, why: str, tmp_path: Path) -> None:
    stored = native_tensors()
    spoil(stored)
    with pytest.raises(ArtefactError, match=why):
        load(write_native(tmp_path / "a.safetensors", stored))


@BOTH
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": 2}, "format"),
        ({"format": ...}, "format"),
        ({"name": "a/b"}, "name"),
        ({"name": ...}, "name"),
        ({"layer": ...}, "layer"),
        ({"layer": -1}, "layer"),
        ({"layer": "3"}, "layer"),
        ({"layer": True}, "layer"),
        ({"layer": 3.0}, "layer"),
        ({"site": "mlp_out"}, "site"),
        ({"model": 3}, "model"),
        ({"architecture": ...}, "architecture"),
        ({"activation": ""}, "activation"),
        ({"config": []}, "config"),
        ({"labels": {}}, "labels"),
        ({"why_not_read": "top-k"}, "card says why_not_read, but the file has W_enc"),
        ({"why_not_read": ""}, "why_not_read"),
    ],
)
def test_cards_that_are_wrong(load: Load, changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=why):
        load(write_native(tmp_path / "a.safetensors", **changes))


@BOTH
@pytest.mark.parametrize("text", ["{", '{"kind": "sae", "layer": NaN}', "3", '{"kind": "sae", "x": 1e999}'])
def test_cards_that_are_not_json_objects(load: Load, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(native_tensors(), path, metadata={"pilothouse": text})
    with pytest.raises(ArtefactError, match=r"not valid JSON|must be a JSON object"):
        load(path)
    # It could be an SAE, so a folder with it is not loaded as though it were not there.
    write_native(tmp_path / "sound.safetensors")
    with pytest.raises(ArtefactError, match=r"a\.safetensors: .*JSON"):
        load_saes(tmp_path)


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.999])
def test_truncated_files(load: Load, share: float, tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtefactError, match=r"cut short|not a whole safetensors file"):
        load(path)


@BOTH
@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (None, "no card of an SAE"),
        ({"pilothouse": '{"kind": "vector"}'}, "card of kind 'vector', not 'sae'"),
        ({"pilothouse": '{"name": "x"}'}, "card of kind None"),
    ],
)
def test_other_safetensors_files(load: Load, metadata: dict[str, str] | None, why: str, tmp_path: Path) -> None:
    save_file(native_tensors(), tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ArtefactError, match=why):
        load(tmp_path / "a.safetensors")


def test_rows_are_checked_when_they_are_read(tmp_path: Path) -> None:
    for name in ("W_dec", "W_enc"):
        stored = native_tensors()
        spoilt(name, float("nan"))(stored)
        sae = load_sae(write_native(tmp_path / "a.safetensors", stored))
        sae.feature(6)
        with pytest.raises(ArtefactError, match=f"row 7 of {name} holds NaN"):
            sae.feature(7)


@pytest.mark.parametrize("row", [0, 7, D_SAE - 1])
@pytest.mark.parametrize("name", ["W_dec", "W_enc"])
def test_every_row_of_an_upload_is_checked(
    name: str, row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilothouse.steering.sae_rows.BLOCK_NUMBERS", 3 * D_IN + 1)
    taken: list[int] = []
    take = tensors.SafetensorsFile.take

    def spy(file: tensors.SafetensorsFile, tensor: str, start: int, stop: int, axis: int) -> Any:
        taken.append(stop - start)
        return take(file, tensor, start, stop, axis)

    monkeypatch.setattr(tensors.SafetensorsFile, "take", spy)
    stored = native_tensors()
    sae_from_upload(write_native(tmp_path / "sound.safetensors", stored))
    assert max(taken) == 3
    assert sum(taken) == 2 * D_SAE
    stored[name][row, 5] = float("inf")
    with pytest.raises(ArtefactError, match=f"^row {row} of {name} holds NaN or infinite numbers$"):
        sae_from_upload(write_native(tmp_path / "a.safetensors", stored))


@pytest.mark.parametrize(
    "key", ["saelens", "gemma-scope", "gemma-scope-2", "goodfire", "qwen-scope", "dict:AutoEncoder"]
)
def test_uploads_of_other_formats_are_told_what_to_do(key: str, tmp_path: Path) -> None:
    path = BY_KEY[key].write(tmp_path)
    why = "no card of an SAE" if path.suffix == ".safetensors" else "is an archive"
    with pytest.raises(ArtefactError, match=f"^the file .*{why}.*`pilothouse sae convert`"):
        sae_from_upload(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x04\x95\x00\x00\x00\x00", "is a pickle"),
        (b"", "cut short"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not a safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "no card"),
        (b"\x10\x27\x00\x00\x00\x00\x00\x00" + b"[" * 10_000, "not a safetensors file"),
    ],
)
def test_uploads_that_are_nothing_of_the_kind(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{why}.*`pilothouse sae convert`") as caught:
        sae_from_upload(tmp_path / "upload")
    assert str(tmp_path) not in str(caught.value)


def test_an_old_torch_file_is_a_pickle(tmp_path: Path) -> None:
    path = BY_KEY["goodfire"].write(tmp_path)
    torch.save(BY_KEY["goodfire"].tensors(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ArtefactError, match=r"is a pickle.*sae convert"):
        sae_from_upload(path)


def test_an_upload_needs_no_name_and_heeds_no_sidecar(tmp_path: Path) -> None:
    (tmp_path / "pilothouse.json").write_text('{"name": "other", "layer": 9}')
    sae = sae_from_upload(write_native(tmp_path / "8f2c"))
    assert (sae.name, sae.layer) == ("mine", 3)


def test_a_folder_holds_several_and_other_artefacts_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_native(tmp_path / f"{name}.safetensors", name=f"sae-{name}")
    save_file({"layer.3": torch.ones(4)}, tmp_path / "v.safetensors", metadata={"pilothouse": '{"kind": "vector"}'})
    save_file({"weight": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert sorted(load_saes(tmp_path)) == ["sae-a", "sae-b"]
    assert list(load_saes(tmp_path / "a.safetensors")) == ["sae-a"]
    with pytest.raises(ArtefactError, match=r"2 SAEs: a\.safetensors \(Pilothouse\), b\.safetensors"):
        load_sae(tmp_path)
    write_native(tmp_path / "c.safetensors", name="sae-a")
    with pytest.raises(ArtefactError, match="already called 'sae-a'"):
        load_saes(tmp_path)


def test_folders_beside_a_file_are_looked_into(tmp_path: Path) -> None:
    write_native(tmp_path / "a.safetensors")
    BY_KEY["saelens"].write(tmp_path)
    write_native(tmp_path / "deeper/still/b.safetensors", name="deep")
    assert sorted(load_saes(tmp_path)) == ["deep", "mine", "sae"]


@pytest.mark.parametrize("name", ["sae_weights", "params", "sae", "checkpoints/final"])
def test_a_file_that_is_called_like_another_formats_is_still_ours(name: str, tmp_path: Path) -> None:
    path = write_native(tmp_path / f"{name}.safetensors")
    for sae in (load_sae(path), *load_saes(tmp_path).values()):
        assert (sae.format, sae.name) == ("pilothouse", "mine")
    # What looks so by its name alone stays what it was.
    save_file(native_tensors(), path)
    with pytest.raises(ArtefactError, match=r"cfg\.json|neither files nor path|hyperparams"):
        load_sae(path)


@pytest.mark.parametrize("key", ["saelens", "gemma-scope-2", "goodfire"])
def test_beside_another_format_both_are_found(key: str, tmp_path: Path) -> None:
    folder = BY_KEY[key].write(tmp_path).parent
    theirs = load_sae(folder)
    write_native(folder / "ours.safetensors")
    save_file({"max_act": torch.ones(D_SAE)}, folder / "feature_stats.safetensors")
    assert load_sae(folder / "ours.safetensors").max_act(0) is None
    if key != "goodfire":
        # A torch file's name says nothing, so it is asked for by itself where anything else is found.
        assert sorted(load_saes(folder)) == sorted(["mine", theirs.name])
        (folder / "pilothouse.json").write_text(json.dumps({"format": theirs.format}))
        assert load_sae(folder).name == theirs.name


def test_a_sidecar_may_name_it_and_its_model_but_not_move_it(tmp_path: Path) -> None:
    path, beside = write_native(tmp_path / "a.safetensors"), tmp_path / "pilothouse.json"
    beside.write_text('{"name": "chosen", "model": "org/tuned", "layer": 3}')
    sae = load_sae(path)
    assert (sae.name, sae.model, sae.layer) == ("chosen", "org/tuned", 3)
    assert load_sae(path, "called").name == "called"
    beside.write_text('{"layer": 4}')
    with pytest.raises(ArtefactError, match=r"pilothouse\.json says layer 4, but the card says 3"):
        load_sae(path)
    beside.write_text('{"norm_scaling_factor": 2.0}')
    with pytest.raises(ArtefactError, match="norm_scaling_factor"):
        load_sae(path)
    beside.write_text('{"format": "pilothouse"}')
    renamed = path.rename(tmp_path / "renamed.bin")
    assert load_sae(renamed).name == "mine"


def test_a_file_whose_rows_were_cut_off_is_known_and_refused(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"b\.safetensors.*not a whole safetensors file"):
        load_saes(tmp_path)


def test_the_card_in_the_docs_is_sound(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    shown = json.loads(next(block for block in docs.split("```json\n")[1:] if '"kind": "sae"' in block).split("```")[0])
    assert set(shown) == set(CARD) | {"site", "why_not_read"}
    assert load_sae(write_native(tmp_path / "a.safetensors", **shown)).layer == shown["layer"]
