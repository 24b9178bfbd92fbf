"""Presets by model name, and SAE features watched under a name of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
from api_support.artefacts import write_all
from api_support.client import HONEST, Client, assert_refused, connect
from api_support.fake_engine import MODEL, FakeServer

from pilothouse.core.errors import StartupError

CALM = {"steering": [{"vector": "calm", "strength": 2}], "probes": ["risk"], "description": "Calmer, and watched."}
BUSY = {"sae": "features", "feature": 3, "flag_above": 4.6}
CHAT = "/v1/chat/completions"


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def serve(folder: Path, presets: Any = None, monitors: Any = None, **config: Any) -> FakeServer:
    files = {"presets": presets, "monitors": monitors}
    paths = {key: write(folder, f"{key}.json", value) for key, value in files.items() if value is not None}
    return FakeServer(write_all(folder, **paths, **config))


def test_a_preset_gives_what_the_request_leaves_out(tmp_path: Path) -> None:
    server = serve(tmp_path, {"calm": CALM})
    assert server.extension.model_names(MODEL) == ["tiny:calm"]
    open_session = server.extension.open
    whole = open_session({}, CHAT, "tiny:calm").plan
    assert [(edit.label, edit.coefficients) for edit in whole.edits] == [("calm", {3: 2.0})]
    assert [readout.label for readout in whole.readouts] == ["risk"]
    own = open_session({"steering": [HONEST]}, CHAT, "tiny:calm").plan
    assert [edit.label for edit in own.edits] == ["honest"]
    assert [readout.label for readout in own.readouts] == ["risk"]
    assert open_session({"steering": [], "probes": []}, CHAT, "tiny:calm").plan.empty
    assert open_session({}, CHAT, "tiny").plan.empty
    assert open_session({}, CHAT, "tiny:wild").plan.empty


def test_a_preset_is_counted_for_its_model(tmp_path: Path) -> None:
    session = serve(tmp_path, {"calm": CALM}).extension.open({}, CHAT, "tiny:calm")
    assert session.model_name == "tiny"  # type: ignore[attr-defined]


async def test_routes_that_cannot_steer_refuse_a_preset(tmp_path: Path) -> None:
    async with connect(serve(tmp_path, {"calm": CALM})) as http:
        assert_refused(await http.post("/v1/embeddings", json={"model": "tiny:calm", "input": "Hello"}), "model")
        escaped = '{"model": "tiny:\\u0063alm", "input": "Hello"}'
        assert_refused(await http.post("/v1/embeddings", content=escaped), "model")
        assert (await http.post("/v1/embeddings", json={"model": "tiny", "input": "calm"})).status_code == 200
        assert (await http.get("/v1/capabilities")).json()["presets"] == ["calm"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ([], "dict"),
        ({"a b": CALM}, "pattern"),
        ({"calm": {"steer": []}}, "calm.steer"),
        ({"calm": {"steering": [{"vector": "nobody"}]}}, "preset 'calm': there is no steering vector"),
        ({"calm": {"probes": ["nobody"]}}, "preset 'calm': there is no probe"),
        ({"calm": {"steering": "calm"}}, "calm.steering"),
    ],
    ids=str,
)
def test_a_bad_preset_ends_the_start(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(StartupError, match=said):
        serve(tmp_path, presets=content)


async def test_a_monitor_is_a_probe_of_that_name(tmp_path: Path) -> None:
    server = serve(tmp_path, monitors={"busy": BUSY}, default_probes=("busy",))
    async with connect(server) as http:
        client = Client(http)
        choice = await client.choice(max_tokens=12)
        watched = await client.choice(max_tokens=12, probes=[{"sae": "features", "feature": 3}])
        assert [card["id"] for card in (await http.get("/v1/probes")).json()["data"]][:1] == ["busy"]
    named, adhoc = choice["probes"]["busy"], watched["probes"]["features/3"]
    assert named["score"] == adhoc["score"] > 4.6
    assert named["flagged"] is adhoc["flagged"] is True
    names = {
        sample.labels["probe"]
        for metric in server.metrics_registry.collect()
        for sample in metric.samples
        if sample.name == "pilothouse_probe_score_count"
    }
    assert names == {"busy", "adhoc"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"busy": {**BUSY, "feature": 4}}, "features 0 to 3"),
        ({"busy": {**BUSY, "sae": "nothing"}}, "there is no SAE 'nothing'"),
        ({"busy": {**BUSY, "sae": "topk"}}, "can only be added"),
        ({"busy": {**BUSY, "flag_above": -1}}, "busy.flag_above"),
        ({"risk": BUSY}, "has the name of a probe"),
    ],
    ids=str,
)
def test_a_bad_monitor_ends_the_start(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(StartupError, match=said):
        serve(tmp_path, monitors=content)
