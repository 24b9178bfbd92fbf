"""Registries: loading, lists and cards, uploads and deletions, and who may do what."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import (
    CALM,
    CALM_ROWS,
    D_MODEL,
    HONEST_ROWS,
    RISK,
    RISK_ROWS,
    SHAPE,
    artefact,
    rows,
    write_all,
)
from api_support.client import HEADERS, Client, assert_refused, connect
from api_support.fake_engine import FakeServer

from pilothouse.api.registry import Registry
from pilothouse.core.config import EngineLayout, Limits, ServerConfig
from pilothouse.core.errors import ArtefactError, PilothouseError, StartupError

LISTS = {
    "/v1/steering_vectors": ("steering_vector", ["calm", "honest"]),
    "/v1/probes": ("probe", ["early", "risk", "truthfulness"]),
    "/v1/saes": ("sae", ["bare", "features", "topk"]),
}
NEW_VECTOR = artefact("vector", {"name": "new"}, rows(50, "layer.0"))


@pytest.mark.parametrize("path", LISTS)
async def test_lists_and_cards(client: Client, path: str) -> None:
    kind, names = LISTS[path]
    listing = (await client.http.get(path)).json()
    assert listing["object"] == "list"
    assert [entry["id"] for entry in listing["data"]] == names
    for entry in listing["data"]:
        assert entry["object"] == kind
        assert entry["digest"].startswith("sha256:")
        assert (await client.http.get(f"{path}/{entry['id']}")).json() == entry
    assert_refused(await client.http.get(f"{path}/nobody"), None, 404)


async def test_a_card_shows_what_the_file_says(client: Client) -> None:
    card = (await client.http.get("/v1/probes/risk")).json()
    assert {key: card[key] for key in RISK} == RISK
    choice = await client.choice(probes=["risk"], steering=[{"vector": "calm"}])
    assert choice["probes"]["risk"]["version"] == card["digest"]
    assert choice["steering"][0]["digest"] == (await client.http.get("/v1/steering_vectors/calm")).json()["digest"]


async def test_a_card_cannot_pass_for_another(client: Client) -> None:
    forged = artefact("vector", {"name": "new", "id": "honest", "digest": "sha256:0"}, rows(50, "layer.0"))
    card = (await client.http.post("/v1/steering_vectors", content=forged, headers=HEADERS)).json()
    assert card["id"] == "new"
    assert card["digest"] != "sha256:0"


async def test_uploads_serve_at_once_and_deletions_end_it(client: Client) -> None:
    created = await client.http.post("/v1/steering_vectors", content=NEW_VECTOR, headers=HEADERS)
    assert (created.status_code, created.json()["id"]) == (200, "new")
    assert (await client.choice(steering=[{"vector": "new"}]))["steering"][0]["layers"] == [0]
    again = await client.http.post("/v1/steering_vectors", content=NEW_VECTOR, headers=HEADERS)
    assert again.json() == created.json()
    other = artefact("vector", {"name": "new"}, rows(51, "layer.0"))
    assert_refused(await client.http.post("/v1/steering_vectors", content=other, headers=HEADERS), None, 409)
    deleted = await client.http.delete("/v1/steering_vectors/new", headers=HEADERS)
    assert deleted.json() == {"id": "new", "object": "steering_vector.deleted", "deleted": True}
    assert_refused(await client.chat(steering=[{"vector": "new"}]), "steering[0].vector")
    assert_refused(await client.http.delete("/v1/steering_vectors/new", headers=HEADERS), None, 404)


async def test_probes_and_saes_change_too(client: Client) -> None:
    probe = artefact("probe", {**RISK, "name": "danger"}, RISK_ROWS)
    assert (await client.http.post("/v1/probes", content=probe, headers=HEADERS)).status_code == 200
    assert "danger" in (await client.choice(probes=["danger"]))["probes"]
    assert (await client.http.delete("/v1/probes/danger", headers=HEADERS)).status_code == 200
    assert_refused(await client.chat(probes=["danger"]), "probes[0]")
    assert (await client.http.delete("/v1/saes/bare", headers=HEADERS)).status_code == 200
    assert_refused(await client.chat(steering=[{"sae": "bare", "feature": 1}]), "steering[0].sae")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        artefact("probe", RISK, RISK_ROWS),
        artefact("vector", {"name": "a+b"}, CALM_ROWS),
        artefact("vector", {"name": "wide"}, {"layer.1": np.ones(D_MODEL + 1, dtype=np.float32)}),
        artefact("vector", {"name": "deep"}, {"layer.5": np.ones(D_MODEL, dtype=np.float32)}),
        artefact("vector", {"name": "nan"}, {"layer.1": np.full(D_MODEL, np.nan, dtype=np.float32)}),
        artefact("vector", {"name": "other", "model": "huge"}, CALM_ROWS),
    ],
    ids=["empty", "junk", "kind", "name", "width", "layer", "nan", "model"],
)
async def test_bad_uploads_are_refused(client: Client, data: bytes) -> None:
    before = (await client.http.get("/v1/steering_vectors")).json()
    assert_refused(await client.http.post("/v1/steering_vectors", content=data, headers=HEADERS), None)
    assert (await client.http.get("/v1/steering_vectors")).json() == before


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "a-key"}, {"Authorization": "Basic a-key"}]
)
async def test_changes_need_the_key(client: Client, path: str, headers: dict[str, str]) -> None:
    assert_refused(await client.http.post(path, content=NEW_VECTOR, headers=headers), None, 401)
    name = LISTS[path][1][0]
    assert_refused(await client.http.delete(f"{path}/{name}", headers=headers), None, 401)
    assert (await client.http.get(f"{path}/{name}")).status_code == 200


async def test_without_a_configured_key_nothing_can_be_changed(tmp_path: Path) -> None:
    async with connect(FakeServer(write_all(tmp_path, admin_key=None))) as http:
        assert_refused(await http.post("/v1/steering_vectors", content=NEW_VECTOR, headers=HEADERS), None, 403)
        assert_refused(await http.delete("/v1/probes/risk", headers=HEADERS), None, 403)


async def test_capabilities(server: FakeServer, client: Client) -> None:
    shown = (await client.http.get("/v1/capabilities")).json()
    assert (shown["model"], shown["d_model"], shown["n_layers"], shown["sites"]) == (
        "tiny",
        D_MODEL,
        5,
        [0, 1, 2, 3, 4],
    )
    assert shown["operations"] == ["add", "ablate", "set", "cap", "clamp", "min_clamp"]
    assert shown["probes"] == ["early", "risk", "truthfulness"]
    assert shown["default_probes"] == []
    limits, layout = Limits(), EngineLayout()
    wanted = {
        "max_edits": limits.max_edits,
        "max_inline_bytes": limits.max_inline_bytes,
        "rows": layout.rows,
        "rows_per_plan": layout.rows_per_plan,
        "readouts": layout.readouts,
    }
    assert wanted.items() <= shown["limits"].items()


def misfit(path: Path) -> None:
    path.write_bytes(artefact("vector", CALM, {"layer.3": np.ones(3, dtype=np.float32)}))


def junk(path: Path) -> None:
    path.write_bytes(b"junk")


@pytest.mark.parametrize("spoil", [misfit, junk])
def test_a_bad_file_stops_the_start_by_name(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    config = write_all(tmp_path)
    spoil(tmp_path / "vectors" / "calm.safetensors")
    with pytest.raises(ArtefactError, match=r"vectors.*"):
        Registry(config, SHAPE)


def test_a_layer_without_a_site_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no site"):
        Registry(write_all(tmp_path), dataclasses.replace(SHAPE, sites=(1, 2, 3)))


def test_missing_folders_and_clashing_names_stop_the_start(tmp_path: Path) -> None:
    config = write_all(tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_bytes(artefact("vector", CALM, HONEST_ROWS))

    def load(**paths: Any) -> Registry:
        return Registry(dataclasses.replace(config, **paths), SHAPE)

    with pytest.raises(StartupError, match="nowhere"):
        load(vectors=(str(tmp_path / "nowhere"),))
    with pytest.raises(StartupError, match=r"other\.safetensors.*'calm'"):
        load(vectors=(*config.vectors, str(other)))
    twice = load(vectors=config.vectors * 2)
    assert sorted(twice.catalogue.vectors) == ["calm", "honest"]


def test_one_file_can_be_named_instead_of_a_folder(tmp_path: Path) -> None:
    write_all(tmp_path)
    config = ServerConfig(
        vectors=(str(tmp_path / "vectors/calm.safetensors"),),
        probes=(str(tmp_path / "probes/risk.safetensors"),),
        saes=(str(tmp_path / "saes/bare"),),
    )
    catalogue = Registry(config, SHAPE).catalogue
    assert [list(catalogue.entries(kind)) for kind in ("vectors", "probes", "saes")] == [["calm"], ["risk"], ["bare"]]


def test_readers_keep_the_catalogue_they_began_with(tmp_path: Path) -> None:
    registry = Registry(write_all(tmp_path), SHAPE)
    before = registry.catalogue
    with registry.uploads.staged() as staged:
        staged.write_bytes(NEW_VECTOR)
        registry.add("vectors", registry.read_upload("vectors", staged), staged)
    registry.remove("vectors", "calm")
    assert sorted(before.vectors) == ["calm", "honest"]
    assert sorted(registry.catalogue.vectors) == ["honest", "new"]
    with pytest.raises(PilothouseError):
        registry.remove("vectors", "calm")
