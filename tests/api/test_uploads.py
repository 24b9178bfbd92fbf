"""What is uploaded and deleted: checked, delivered to the engine, kept on disk, replaced as a whole, read again."""

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import (
    CALM,
    CALM_ROWS,
    D_MODEL,
    HONEST,
    MAX_ACTS,
    RISK,
    RISK_ROWS,
    SAE_DECODER,
    SHAPE,
    artefact,
    write_all,
)
from api_support.client import HEADERS, Client, assert_refused, connect
from api_support.fake_engine import FakeServer
from api_support.uploads import RELOAD, SAES, VECTORS, post, sae, store, vector
from safetensors.numpy import save

from pilothouse.api import registry_routes
from pilothouse.api.errors import ConflictError
from pilothouse.api.registry import Registry
from pilothouse.api.state import ApiState
from pilothouse.core.config import Limits, ServerConfig
from pilothouse.core.errors import EngineGap, NotFound, StartupError
from pilothouse.steering import vector_from_bytes


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
    kept = ("registry", "results", "layout", "limits", "strength_limit", "metrics")
    fields = {f: getattr(server.app.state.pilothouse, f) for f in kept}
    server.app.state.pilothouse = ApiState(**fields, admin_key="a-key")
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


def test_a_folder_that_cannot_keep_uploads_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StartupError, match="cannot keep uploads"):
        Registry(write_all(tmp_path / "given", uploads=str(tmp_path / "taken")), SHAPE)
    config = write_all(tmp_path / "more", uploads=str(tmp_path / "uploads"))
    Registry(config, SHAPE)
    (tmp_path / "uploads/deleted/vectors/calm.json").write_text("{")
    with pytest.raises(StartupError, match="does not say what was deleted"):
        Registry(config, SHAPE)


def test_servers_that_share_uploads_do_not_overwrite_each_other(tmp_path: Path) -> None:
    one, other = (
        Registry(write_all(tmp_path / name, uploads=str(tmp_path / "uploads")), SHAPE) for name in ("one", "other")
    )
    store(one, vector("new", 50))
    with pytest.raises(ConflictError, match="other content"):
        store(other, vector("new", 51))
    store(other, vector("new", 51), replaces=True)
    # What one deletes has been replaced meanwhile: both know of one name only.
    digest = other.catalogue.vectors["new"].digest
    with pytest.raises(ConflictError):
        store(one, vector("new", 50))
    assert one.catalogue.vectors["new"].digest == digest
    one.remove("vectors", "new")
    with pytest.raises(NotFound):
        other.remove("vectors", "new")
    # Content that the other server still believes in is kept all the same.
    store(one, vector("again", 52))
    store(other, vector("again", 52))
    one.remove("vectors", "again")
    store(other, vector("again", 52))
    other.reload()
    assert "again" in other.catalogue.vectors


def test_an_upload_of_what_a_folder_has_stays_when_the_folder_loses_it(tmp_path: Path) -> None:
    registry = Registry(write_all(tmp_path, uploads=str(tmp_path / "uploads")), SHAPE)
    store(registry, artefact("vector", CALM, CALM_ROWS))
    (tmp_path / "vectors/calm.safetensors").unlink()
    assert registry.reload()["vectors"] == {"added": [], "replaced": [], "removed": []}
    assert "calm" in registry.catalogue.vectors


@pytest.mark.parametrize("key", ["", " ", " a-key", "a-key\n"])
def test_a_key_that_everybody_has_is_none(key: str) -> None:
    with pytest.raises(StartupError, match="admin key"):
        ServerConfig(admin_key=key)


def test_what_a_killed_server_left_is_removed_and_folders_are_made_again(tmp_path: Path) -> None:
    config = write_all(tmp_path, uploads=str(tmp_path / "uploads"))
    registry = Registry(config, SHAPE)
    old, young = (tmp_path / "uploads/incoming" / name for name in ("old.safetensors", "young.safetensors"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    Registry(config, SHAPE)
    assert (old.exists(), young.exists()) == (False, True)
    shutil.rmtree(tmp_path / "uploads")
    assert registry.reload()["vectors"]["removed"] == []
    store(registry, vector("new", 50))
    assert (tmp_path / "uploads/vectors/new.safetensors").exists()


async def test_a_disk_that_takes_nothing_registers_nothing(
    server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.app.state.pilothouse.registry.uploads, "keep", full)
    assert "No space" in assert_refused(await post(client, VECTORS, vector("new", 50)), None, 503)["message"]
    assert_refused(await client.http.get(f"{VECTORS}/new"), None, 404)
