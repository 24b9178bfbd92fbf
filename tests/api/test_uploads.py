"""What is uploaded and deleted: checked, delivered to the engine, kept on disk, replaced as a whole, read again."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_support.artefacts import (
    CALM,
    CALM_ROWS,
    D_MODEL,
    HONEST,
    HONEST_ROWS,
    MAX_ACTS,
    RISK,
    RISK_ROWS,
    SAE_DECODER,
    SHAPE,
    artefact,
    rows,
    write_all,
)
from api_support.client import HEADERS, Client, assert_refused, connect
from api_support.fake_engine import FakeServer
from safetensors.numpy import save

from pilothouse.api import registry_routes
from pilothouse.api.registry import Registry
from pilothouse.api.state import ApiState
from pilothouse.api.watch import watch
from pilothouse.core.config import Limits
from pilothouse.core.errors import EngineGap, StartupError
from pilothouse.steering import vector_from_bytes

VECTORS = "/v1/steering_vectors"
SAES = "/v1/saes"
RELOAD = "/v1/registry/reload"


def vector(name: str, seed: int, **card: Any) -> bytes:
    return artefact("vector", {"name": name, **card}, rows(seed, "layer.1"))


def sae(seed: int = 6, **card: Any) -> bytes:
    """A SAE in the native form, its rows from `seed`."""
    rng = np.random.default_rng(seed)
    tensors = {
        "W_dec": rng.standard_normal((4, D_MODEL)).astype(np.float32),
        "W_enc": rng.standard_normal((4, D_MODEL)).astype(np.float32),
        "b_enc": np.zeros(4, np.float32),
        "threshold": np.full(4, 0.5, np.float32),
        "max_act": MAX_ACTS,
    }
    settings = {"name": "sent", "layer": 2, "architecture": "jumprelu", "activation": "jumprelu", **card}
    return artefact("sae", settings, tensors)


async def post(client: Client, path: str, content: bytes, **params: Any) -> httpx.Response:
    return await client.http.post(path, content=content, headers=HEADERS, params=params)


async def test_an_upload_is_with_the_engine_before_it_has_a_name(server: FakeServer, client: Client) -> None:
    data = vector("new", 50)
    assert (await post(client, VECTORS, data)).status_code == 200
    assert server.delivered == [vector_from_bytes(data).direction.digest]
    server.delivery_error = EngineGap("the workers did not read by what was uploaded")
    assert_refused(await post(client, VECTORS, vector("other", 51)), None, 500)
    assert_refused(await client.http.get(f"{VECTORS}/other"), None, 404)
    assert_refused(await client.chat(steering=[{"vector": "other"}]), "steering[0].vector")


async def test_an_engine_that_takes_too_long_registers_nothing(
    server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(direction: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(registry_routes, "DELIVERY_SECONDS", 0.05)
    server.app.state.pilothouse = replace(server.app.state.pilothouse, deliver=never)
    assert_refused(await post(client, VECTORS, vector("new", 50)), None, 503)
    assert_refused(await client.http.get(f"{VECTORS}/new"), None, 404)


async def test_before_the_engine_is_there_nothing_can_be_uploaded(server: FakeServer, client: Client) -> None:
    fields = {f: getattr(server.app.state.pilothouse, f) for f in ("registry", "results", "layout", "limits")}
    server.app.state.pilothouse = ApiState(
        **fields, admin_key="a-key", strength_limit=server.app.state.pilothouse.strength_limit
    )
    assert_refused(await post(client, VECTORS, vector("new", 50)), None, 500)


async def test_a_name_is_rebound_only_on_request_and_at_once(server: FakeServer, client: Client) -> None:
    first, second = ((await post(client, VECTORS, vector("new", 50))).json(), vector("new", 51))
    running = server.extension.open({"steering": [{"vector": "new"}]}, "r", "tiny")
    refused = assert_refused(await post(client, VECTORS, second), None, 409)
    assert "replace=true" in refused["message"]
    replaced = (await post(client, VECTORS, second, replace=True)).json()
    assert replaced["digest"] != first["digest"]
    receipt = (await client.choice(steering=[{"vector": "new"}]))["steering"][0]
    assert receipt["digest"] == replaced["digest"]
    # A request that began before holds content, not the name.
    assert "sha256:" + running.plan.edits[0].direction.digest.hex() == first["digest"]


async def test_the_same_rows_with_another_card_are_other_content(client: Client) -> None:
    await post(client, VECTORS, vector("new", 50))
    changed = vector("new", 50, recommended=[1.0, 2.0])
    assert_refused(await post(client, VECTORS, changed), None, 409)
    assert (await post(client, VECTORS, changed, replace=True)).json()["recommended"] == [1.0, 2.0]
    assert (await client.http.get(f"{VECTORS}/new")).json()["recommended"] == [1.0, 2.0]


async def test_an_sae_can_be_uploaded_used_and_deleted(server: FakeServer, client: Client) -> None:
    created = await post(client, SAES, sae())
    assert created.status_code == 200, created.text
    assert (created.json()["id"], created.json()["object"]) == ("sent", "sae")
    assert not server.delivered, "features go to the workers with the requests that use them"
    receipt = (await client.choice(steering=[{"sae": "sent", "feature": 1, "op": "clamp", "strength": 2.0}]))[
        "steering"
    ]
    assert receipt[0]["coefficients"] == {"2": 2.0 * MAX_ACTS[1]}
    clamp = {"sae": "sent", "feature": 2, "op": "clamp"}
    assert len(server.extension.open({"steering": [clamp]}, "r", "tiny").plan.directions) == 2, "not two rows of eight"
    old = server.extension.open({"steering": [{"sae": "sent", "feature": 2}]}, "r", "tiny").plan.edits[0]
    # Another file takes the place of the first, of which rows are still to be read.
    catalogue = server.app.state.pilothouse.registry.catalogue
    assert_refused(await post(client, SAES, sae(7)), None, 409)
    assert (await post(client, SAES, sae(7), replace=True)).status_code == 200
    new = server.extension.open({"steering": [{"sae": "sent", "feature": 2}]}, "r", "tiny").plan.edits[0]
    for edit, seed in ((old, 6), (new, 7)):
        wanted = np.random.default_rng(seed).standard_normal((4, D_MODEL)).astype(np.float32)[2]
        np.testing.assert_array_equal(edit.direction.layers[2], wanted)
    first = np.random.default_rng(6).standard_normal((4, D_MODEL)).astype(np.float32)
    np.testing.assert_array_equal(catalogue.saes["sent"].decoder_row(3), first[3])
    assert (await client.http.delete(f"{SAES}/sent", headers=HEADERS)).status_code == 200
    assert_refused(await client.chat(steering=[{"sae": "sent", "feature": 1}]), "steering[0].sae")


def not_finite() -> bytes:
    decoder = np.array(SAE_DECODER)
    decoder[3, 5] = np.nan
    settings = {
        "name": "sent",
        "layer": 2,
        "architecture": "standard",
        "activation": "relu",
        "why_not_read": "no encoder",
    }
    return artefact("sae", settings, {"W_dec": decoder})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"\x80\x04\x95",
        sae()[:-100],
        sae(layer=5),
        sae(model="huge"),
        sae(name="a/b"),
        bytes(save({"W_dec": SAE_DECODER})),
        artefact("vector", CALM, CALM_ROWS),
        not_finite(),
    ],
    ids=["empty", "junk", "pickle", "truncated", "layer", "model", "name", "no card", "vector", "nan"],
)
async def test_bad_saes_are_refused_and_leave_nothing(server: FakeServer, client: Client, data: bytes) -> None:
    before = (await client.http.get(SAES)).json()
    assert_refused(await post(client, SAES, data), None)
    assert (await client.http.get(SAES)).json() == before
    uploads = server.app.state.pilothouse.registry.uploads
    assert not [path for path in uploads.root.rglob("*") if path.is_file()]


async def test_uploads_have_a_largest_size(tmp_path: Path) -> None:
    data = sae()
    async with connect(FakeServer(write_all(tmp_path, limits=Limits(max_sae_bytes=len(data) - 1)))) as http:
        client = Client(http)
        assert_refused(await post(client, SAES, data), None, 413)

        async def pieces() -> Any:
            for start in range(0, len(data), 100):
                yield data[start : start + 100]

        # Without a declared length the size shows only on the way.
        response = await http.post(SAES, content=pieces(), headers=HEADERS)
        assert_refused(response, None, 413)
        assert (await http.get("/v1/capabilities")).json()["limits"]["max_sae_bytes"] == len(data) - 1


async def test_the_key_is_asked_for_before_the_body(client: Client) -> None:
    taken = 0

    async def pieces() -> Any:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b"x" * 1000

    response = await client.http.post(SAES, content=pieces(), headers={"Authorization": "Bearer wrong"})
    assert_refused(response, None, 401)
    assert taken <= 1


async def test_what_was_uploaded_and_deleted_outlives_the_server(tmp_path: Path) -> None:
    config = write_all(tmp_path / "given", uploads=str(tmp_path / "uploads"))
    async with connect(FakeServer(config)) as http:
        client = Client(http)
        for path, data in (
            (VECTORS, vector("new", 50)),
            ("/v1/probes", artefact("probe", {**RISK, "name": "danger"}, RISK_ROWS)),
            (SAES, sae()),
        ):
            assert (await post(client, path, data)).status_code == 200
        # One that lies in a configured folder, and one that shadows such a one.
        assert (await http.delete(f"{VECTORS}/calm", headers=HEADERS)).status_code == 200
        assert (await post(client, VECTORS, vector("honest", 52), replace=True)).status_code == 200
        before = {path: (await http.get(path)).json() for path in (VECTORS, "/v1/probes", SAES)}
    async with connect(FakeServer(config)) as http:
        client = Client(http)
        assert {path: (await http.get(path)).json() for path in before} == before
        assert [entry["id"] for entry in before[VECTORS]["data"]] == ["honest", "new"]
        # Gone with it is what it shadowed, until that is other content.
        assert (await http.delete(f"{VECTORS}/honest", headers=HEADERS)).status_code == 200
        assert (await http.post(RELOAD, headers=HEADERS)).json()["vectors"] == {
            "added": [],
            "replaced": [],
            "removed": [],
        }
        (tmp_path / "given/vectors/honest.safetensors").write_bytes(
            artefact("vector", HONEST, {"layer.2": RISK_ROWS["weight.2"]})
        )
        assert (await http.post(RELOAD, headers=HEADERS)).json()["vectors"]["added"] == ["honest"]
        # What was deleted can be uploaded again.
        assert (await post(client, VECTORS, artefact("vector", CALM, CALM_ROWS))).status_code == 200
    names = Registry(config, SHAPE).catalogue.vectors
    assert sorted(names) == ["calm", "honest", "new"]


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


def test_a_folder_that_cannot_keep_uploads_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StartupError, match="cannot keep uploads"):
        Registry(write_all(tmp_path / "given", uploads=str(tmp_path / "taken")), SHAPE)
    config = write_all(tmp_path / "more", uploads=str(tmp_path / "uploads"))
    Registry(config, SHAPE)
    (tmp_path / "uploads/deleted/vectors/calm.json").write_text("{")
    with pytest.raises(StartupError, match="does not say what was deleted"):
        Registry(config, SHAPE)
