"""Folders and other places that are read again: what changed is served, whole or not at all, and told of."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from api_support.artefacts import (
    CALM,
    CALM_ROWS,
    HONEST,
    HONEST_ROWS,
    MAX_ACTS,
    RISK,
    RISK_ROWS,
    SHAPE,
    artefact,
    rows,
    write_all,
    write_sae,
)
from api_support.client import HEADERS, Client, assert_refused, connect
from api_support.fake_engine import FakeServer
from api_support.uploads import RELOAD, SAES, VECTORS, post, vector

from pilothouse.api import loading
from pilothouse.api.registry import Registry
from pilothouse.api.watch import watch
from pilothouse.core.config import ServerConfig
from pilothouse.core.errors import ArtefactError


async def test_reload_reads_all_again_or_changes_nothing(tmp_path: Path) -> None:
    config = write_all(tmp_path, default_probes=("risk",))
    server = FakeServer(config)
    async with connect(server) as http:
        assert_refused(await http.post(RELOAD), None, 401)
        (tmp_path / "vectors/new.safetensors").write_bytes(vector("new", 50))
        (tmp_path / "vectors/calm.safetensors").write_bytes(
            artefact("vector", CALM, {"layer.3": HONEST_ROWS["layer.1"]})
        )
        (tmp_path / "vectors/honest.safetensors").unlink()
        shutil.rmtree(tmp_path / "saes/bare")
        changes = (await http.post(RELOAD, headers=HEADERS)).json()
        assert changes == {
            "object": "registry.reload",
            "vectors": {"added": ["new"], "replaced": ["calm"], "removed": ["honest"]},
            "probes": {"added": [], "replaced": [], "removed": []},
            "saes": {"added": [], "replaced": [], "removed": ["bare"]},
        }
        before = (await http.get(VECTORS)).json()
        (tmp_path / "vectors/more.safetensors").write_bytes(vector("more", 51))
        (tmp_path / "vectors/broken.safetensors").write_bytes(vector("broken", 51)[:-8])
        assert "broken" in assert_refused(await http.post(RELOAD, headers=HEADERS), None, 409)["message"]
        assert (await http.get(VECTORS)).json() == before
        assert "broken" in (await http.get("/v1/capabilities")).json()["reload_error"]
        (tmp_path / "vectors/broken.safetensors").unlink()
        # A default probe is never taken from under the server.
        (tmp_path / "probes/risk.safetensors").unlink()
        assert "risk" in assert_refused(await http.post(RELOAD, headers=HEADERS), None, 409)["message"]
        (tmp_path / "probes/risk.safetensors").write_bytes(artefact("probe", RISK, RISK_ROWS))
        assert (await http.post(RELOAD, headers=HEADERS)).json()["vectors"]["added"] == ["more"]
        assert (await http.get("/v1/capabilities")).json()["reload_error"] is None


async def test_what_presets_and_monitors_need_is_not_given_up(tmp_path: Path) -> None:
    presets, monitors = tmp_path / "presets.json", tmp_path / "monitors.json"
    presets.write_text(json.dumps({"calmly": {"steering": [{"vector": "calm"}]}}))
    monitors.write_text(json.dumps({"watched": {"sae": "features", "feature": 1}}))
    config = write_all(tmp_path / "given", presets=str(presets), monitors=str(monitors))
    async with connect(FakeServer(config)) as http:
        client = Client(http)
        for path in (f"{VECTORS}/calm", f"{SAES}/features", "/v1/probes/watched"):
            assert_refused(await http.delete(path, headers=HEADERS), None, 409)
            assert (await http.get(path)).status_code == 200
        named = artefact("probe", {**RISK, "name": "watched"}, RISK_ROWS)
        assert_refused(await post(client, "/v1/probes", named, replace=True), None, 409)
        (tmp_path / "given/vectors/calm.safetensors").unlink()
        assert "calmly" in assert_refused(await http.post(RELOAD, headers=HEADERS), None, 409)["message"]
        # Another of that name will do.
        assert (await post(client, VECTORS, vector("calm", 53), replace=True)).status_code == 200
        assert (await http.post(RELOAD, headers=HEADERS)).status_code == 200


async def until(registry: Registry, name: str, there: bool) -> None:
    for _ in range(200):
        if (name in registry.catalogue.vectors) == there:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} {'did not come' if there else 'is still there'}")


async def test_changes_in_folders_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(write_all(tmp_path, uploads=str(tmp_path / "uploads")), SHAPE)
    watching = asyncio.create_task(watch(registry, 0.02))
    try:
        path = tmp_path / "vectors/new.safetensors"
        whole = vector("new", 50)
        path.write_bytes(whole[:-8])
        for _ in range(200):
            if registry.reload_error is not None:
                break
            await asyncio.sleep(0.02)
        assert "new.safetensors" in str(registry.reload_error)
        # Some more looks, of which each finds the same.
        await asyncio.sleep(0.3)
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
        path.write_bytes(whole)
        await until(registry, "new", True)
        assert registry.reload_error is None
        # What another server of the same uploads takes and deletes.
        other = Registry(write_all(tmp_path / "again", uploads=str(tmp_path / "uploads")), SHAPE)
        with other.uploads.staged() as staged:
            staged.write_bytes(vector("theirs", 51))
            other.add("vectors", other.read_upload("vectors", staged), staged)
        await until(registry, "theirs", True)
        other.remove("vectors", "calm")
        await until(registry, "calm", False)
    finally:
        watching.cancel()


def test_a_card_alone_makes_an_artefact_another(tmp_path: Path) -> None:
    registry = Registry(write_all(tmp_path, uploads=str(tmp_path / "uploads")), SHAPE)
    registry.remove("vectors", "calm")
    assert registry.reload()["vectors"]["added"] == []
    for name, card, tensors in (("honest", HONEST, HONEST_ROWS), ("calm", CALM, CALM_ROWS)):
        changed = artefact("vector", {**card, "recommended": [1.0, 2.0]}, tensors)
        (tmp_path / f"vectors/{name}.safetensors").write_bytes(changed)
    found = registry.reload()["vectors"]
    assert (found["added"], found["replaced"]) == (["calm"], ["honest"])


async def test_features_are_read_where_the_sae_says_now(tmp_path: Path) -> None:
    """Weights that stay while their configuration, which the digest does not cover, changes."""
    server = FakeServer(write_all(tmp_path))
    entry = {"sae": "features", "feature": 1}
    asked = {"steering": [{**entry, "op": "clamp"}], "probes": [entry]}
    before = server.extension.open(asked, "r", "tiny").plan
    path = tmp_path / "saes/features/cfg.json"
    cfg = json.loads(path.read_text())
    cfg |= {"metadata": {"hook_name": "blocks.3.hook_resid_post"}, "apply_b_dec_to_input": False}
    path.write_text(json.dumps(cfg))
    async with connect(server) as http:
        changes = (await http.post(RELOAD, headers=HEADERS)).json()
    assert changes["saes"]["replaced"] == ["features"]
    after = server.extension.open(asked, "r", "tiny").plan
    fresh = FakeServer(server.config).extension.open(asked, "r", "tiny").plan
    for plan, layer in ((before, 2), (after, 3), (fresh, 3)):
        assert [list(direction.layers) for direction in plan.directions] == [[layer]] * 3
    readers = [plan.edits[0].reader for plan in (before, after, fresh)]
    biases = [reader.bias for reader in readers if reader is not None]
    assert biases[1] == biases[2] != biases[0]


def test_one_weights_file_may_serve_at_two_layers(tmp_path: Path) -> None:
    config = write_all(tmp_path)
    write_sae(tmp_path / "saes" / "later", {"max_act": MAX_ACTS}, metadata={"hook_name": "blocks.4.hook_resid_post"})
    server = FakeServer(config)
    for name, layer in (("features", 2), ("later", 4)):
        fields = {"steering": [{"sae": name, "feature": 1}], "probes": [{"sae": name, "feature": 1}]}
        plan = server.extension.open(fields, "r", "tiny").plan
        assert [list(direction.layers) for direction in plan.directions] == [[layer], [layer]]


def test_secrets_of_places_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path)
    (tmp_path / "vectors/deep.safetensors").write_bytes(artefact("vector", {"name": "deep"}, rows(9, "layer.9")))
    monkeypatch.setattr(loading, "local_path", lambda place: tmp_path / "vectors")
    for place in ("https://bucket.example/v?X-Amz-Signature=TOPSECRET", "s3://key:TOPSECRET@bucket/v"):
        with pytest.raises(ArtefactError, match="layer 9") as caught:
            Registry(ServerConfig(vectors=(place,)), SHAPE)
        assert "TOPSECRET" not in str(caught.value)


async def test_a_place_that_does_not_answer_is_told_of_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(write_all(tmp_path), SHAPE)
    look = registry.signature
    answers = False

    def signature() -> tuple[str, ...]:
        if not answers:
            raise ArtefactError("s3://bucket does not answer")
        return look()

    monkeypatch.setattr(registry, "signature", signature)
    watching = asyncio.create_task(watch(registry, 0.02))
    try:
        for wanted in ("s3://bucket does not answer", None):
            for _ in range(200):
                if registry.reload_error == wanted:
                    break
                await asyncio.sleep(0.02)
            assert registry.reload_error == wanted
            answers = True
    finally:
        watching.cancel()
