"""Everything that a request may say wrongly is a 400 that names the field; everything else is a plan."""

import json
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import D_MODEL, write_all
from api_support.client import HONEST, INLINE, ONES, Client, assert_refused, b64
from api_support.fake_engine import FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.api.plans import Planner
from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import Plan

GATE = {"probe": "risk", "when": "above", "threshold": 0.5}
ZERO = {"inline": {"layers": {"3": b64(np.zeros(D_MODEL))}}}

# (entry of `steering`, the path behind steering[0])
BAD_EDITS: list[tuple[Any, str]] = [
    ({}, ""),
    ("honest", ""),
    ({**HONEST, "sae": "features", "feature": 1}, ""),
    ({**HONEST, **INLINE}, ""),
    ({"vector": "dishonest"}, ".vector"),
    ({"vector": "\ud800"}, ".vector"),
    ({"vector": ["honest"]}, ".vector"),
    ({"sae": "nothing", "feature": 1}, ".sae"),
    ({"sae": "features"}, ".feature"),
    ({"sae": "features", "feature": 4}, ".feature"),
    ({"sae": "features", "feature": -1}, ".feature"),
    ({"sae": "features", "feature": True}, ".feature"),
    ({"sae": "features", "feature": 1.0}, ".feature"),
    ({**HONEST, "feature": 1}, ".feature"),
    ({"inline": {}}, ".inline.layers"),
    ({"inline": {"layers": {}}}, ".inline.layers"),
    ({"inline": {"layers": {"3": 1}}}, ".inline.layers.3"),
    ({"inline": {"layers": {"3": "@@@"}}}, ".inline.layers.3"),
    ({"inline": {"layers": {"3": b64(np.ones(D_MODEL - 1))}}}, ".inline.layers.3"),
    ({"inline": {"layers": {"3": b64([np.nan] * D_MODEL)}}}, ".inline.layers.3"),
    ({"inline": {"layers": {"3": b64([np.inf] * D_MODEL)}}}, ".inline.layers.3"),
    ({"inline": {"layers": {"5": ONES}}}, ".inline.layers.5"),
    ({"inline": {"layers": {"-1": ONES}}}, ".inline.layers.-1"),
    ({"inline": {"layers": {"\ud800": ONES}}}, ".inline.layers.\\ud800"),
    ({"inline": {"layers": {"3": ONES}, "more": 1}}, ".inline.more"),
    ({**HONEST, "op": "subtract"}, ".op"),
    ({**HONEST, "op": "ablate", "strength": -0.1}, ".strength"),
    ({**HONEST, "op": "ablate", "strength": 2.1}, ".strength"),
    ({**HONEST, "op": "ablate", "unit": "resid_norm"}, ".unit"),
    ({**ZERO, "op": "ablate"}, ""),
    ({**ZERO, "op": "set"}, ""),
    ({**HONEST, "op": "set", "strength": 1e39}, ".strength"),
    ({**HONEST, "op": "cap"}, ""),
    ({**HONEST, "op": "cap", "min": 1, "max": 0}, ".min"),
    ({**HONEST, "op": "cap", "max": 1e39}, ".max"),
    ({**HONEST, "op": "cap", "max": 1, "strength": 3}, ".strength"),
    ({**HONEST, "op": "clamp"}, ".op"),
    ({**INLINE, "op": "min_clamp"}, ".op"),
    ({"sae": "topk", "feature": 1, "op": "clamp"}, ".op"),
    ({"sae": "bare", "feature": 1, "op": "clamp", "unit": "max_act"}, ".unit"),
    ({**HONEST, "min": 0}, ".min"),
    ({**HONEST, "op": "set", "max": 0}, ".max"),
    ({**HONEST, "strength": "4"}, ".strength"),
    ({**HONEST, "strength": True}, ".strength"),
    ({**HONEST, "strength": None}, ".strength"),
    ({**HONEST, "strength": float("nan")}, ".strength"),
    ({**HONEST, "strength": float("inf")}, ".strength"),
    ({**HONEST, "strength": 10**400}, ".strength"),
    ({**HONEST, "strength": 1e39}, ".strength"),
    ({**HONEST, "strength": 3e38, "layers": "all"}, ".strength"),
    ({**HONEST, "strength": 1e38, "unit": "resid_norm"}, ".strength"),
    ({**HONEST, "unit": "norm"}, ".unit"),
    ({**HONEST, "unit": "max_act"}, ".unit"),
    ({**INLINE, "unit": "max_act"}, ".unit"),
    ({**INLINE, "unit": "resid_norm"}, ".unit"),
    ({"vector": "calm", "unit": "resid_norm"}, ".unit"),
    ({**HONEST, "unit": "resid_norm", "layers": [3]}, ".unit"),
    ({"sae": "features", "feature": 1, "unit": "resid_norm"}, ".unit"),
    ({"sae": "bare", "feature": 1, "unit": "max_act"}, ".unit"),
    ({"sae": "features", "feature": 0, "unit": "max_act"}, ".unit"),
    ({**HONEST, "layers": []}, ".layers"),
    ({**HONEST, "layers": "most"}, ".layers"),
    ({**HONEST, "layers": 2}, ".layers"),
    ({**HONEST, "layers": [2, 4]}, ".layers[1]"),
    ({**HONEST, "layers": [-1]}, ".layers[0]"),
    ({**HONEST, "layers": [2, 2]}, ".layers[1]"),
    ({**HONEST, "layers": [2, True]}, ".layers[1]"),
    ({**HONEST, "layers": [2.0]}, ".layers[0]"),
    ({"sae": "features", "feature": 1, "layers": [3]}, ".layers[0]"),
    ({**INLINE, "layers": [2]}, ".layers[0]"),
    ({**HONEST, "positions": "answer"}, ".positions"),
    ({**HONEST, "positions": None}, ".positions"),
    ({**HONEST, "positions": [0, 3]}, ".positions"),
    ({**HONEST, "positions": {"from": 0}}, ".positions.to"),
    ({**HONEST, "positions": {"from": 0.0, "to": 3}}, ".positions.from"),
    ({**HONEST, "positions": {"from": 0, "to": 3, "step": 2}}, ".positions.step"),
    ({**HONEST, "positions": {"from": 0, "to": 2**40}}, ".positions.to"),
    ({**HONEST, "positions": {"from": 3, "to": 3}}, ".positions"),
    ({**HONEST, "positions": {"from": -1, "to": -3}}, ".positions"),
    ({**HONEST, "positions": {"from": -3, "to": 0}}, ".positions"),
    ({**HONEST, "positions": {"from": -1, "to": 2}}, ".positions"),
    ({**HONEST, "positions": {"from": 500, "to": -1}}, ".positions"),
    ({**HONEST, "preserve_norm": 0}, ".preserve_norm"),
    ({**HONEST, "gate": False}, ".gate"),
    ({**HONEST, "gate": {**GATE, "probe": "luck"}}, ".gate.probe"),
    ({**HONEST, "gate": {**GATE, "probe": "early"}}, ".gate.probe"),
    ({**HONEST, "layers": "all", "gate": GATE}, ".gate.probe"),
    ({**HONEST, "gate": {**GATE, "when": "beside"}}, ".gate.when"),
    ({**HONEST, "gate": {**GATE, "threshold": float("nan")}}, ".gate.threshold"),
    ({**HONEST, "gate": {**GATE, "threshold": "0.5"}}, ".gate.threshold"),
    ({**HONEST, "gate": {**GATE, "scope": "sequence"}}, ".gate.scope"),
    ({**HONEST, "gate": {**GATE, "action": "shout"}}, ".gate.action"),
    ({**HONEST, "gate": {**GATE, "more": 1}}, ".gate.more"),
    ({**HONEST, "gate": {"probe": "risk", "when": "above"}}, ".gate.threshold"),
    ({**HONEST, "weight": 2}, ".weight"),
    ({**HONEST, "\ud800": 2}, ""),
]

BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    *(({"steering": [edit]}, f"steering[0]{path}") for edit, path in BAD_EDITS),
    ({"steering": None}, "steering"),
    ({"steering": HONEST}, "steering"),
    ({"steering": "honest"}, "steering"),
    ({"steering": [HONEST, {"vector": "dishonest"}]}, "steering[1].vector"),
    ({"steering": [HONEST] * 9}, "steering"),
    ({"steering": [{"inline": {"layers": {"3": "A" * 6_000_000}}}]}, "steering[0].inline"),
    ({"probes": None}, "probes"),
    ({"probes": "risk"}, "probes"),
    ({"probes": True}, "probes"),
    ({"probes": ["luck"]}, "probes[0]"),
    ({"probes": ["risk", 3]}, "probes[1]"),
    ({"probes": ["risk", "risk"]}, "probes[1]"),
    ({"probes": [{"sae": "nothing", "feature": 1}]}, "probes[0].sae"),
    ({"probes": [{"sae": "features", "feature": 4}]}, "probes[0].feature"),
    ({"probes": [{"sae": "topk", "feature": 1}]}, "probes[0].feature"),
    ({"probes": [{"sae": "features", "feature": "1"}]}, "probes[0].feature"),
    ({"probes": [{"sae": "features"}]}, "probes[0].feature"),
    ({"probes": [{"sae": "features", "feature": 1}] * 2}, "probes[1]"),
    ({"probes": {"names": [{"sae": "features", "feature": 9}]}}, "probes.names[0].feature"),
    ({"probes": {"sae": "features"}}, "probes.sae"),
    ({"probes": {"names": "risk"}}, "probes.names"),
    ({"probes": {"names": None}}, "probes.names"),
    ({"probes": {"names": ["risk", "luck"]}}, "probes.names[1]"),
    ({"probes": {"names": ["risk"], "tokens": 1}}, "probes.tokens"),
    ({"probes": {"names": ["risk"], "prompt": "yes"}}, "probes.prompt"),
    ({"probes": {"names": ["risk"], "logits": True}}, "probes.logits"),
    ({"steering": [HONEST], "use_beam_search": True}, "steering"),
    ({"probes": ["risk"], "use_beam_search": True}, "probes"),
    *(
        ({name: []}, name)
        for name in (
            *(
                "steer",
                "steers",
                "Steering",
                "STEERING",
                "steering_vector",
                "steering_vectors",
                "steerings",
                "sterring",
            ),
            *("vectors", "stering", "probe", "Probes", "probing", "prob", "probse", "prbes", "probe_names", "prob-es"),
        )
    ),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES, ids=lambda v: ascii(v)[:70])
async def test_bad_requests_name_their_field(client: Client, body: dict[str, Any], param: str) -> None:
    # json.dumps writes NaN and Infinity, which Python's reader takes: a client can send them.
    response = await client.http.post(
        "/v1/chat/completions", content=json.dumps({"messages": [{"content": "Hello, who is there?"}], **body})
    )
    assert_refused(response, param)


@pytest.mark.parametrize("name", ["user", "seed", "process", "props", "serving", "service_tier", "problem", "logprobs"])
async def test_other_fields_are_not_ours(client: Client, name: str) -> None:
    assert (await client.chat(**{name: 1})).status_code == 200


@pytest.mark.parametrize(
    ("more", "key"), [({"op": "ablate"}, "op"), ({"preserve_norm": True}, "preserve_norm"), ({"gate": GATE}, "gate")]
)
async def test_what_is_not_compiled_in_is_said_so(
    server: FakeServer, client: Client, more: dict[str, Any], key: str
) -> None:
    edit = {**HONEST, **more}
    assert (await client.chat(steering=[edit])).status_code == 200
    compile_in(server, chain_steps=0)
    response = await client.chat(steering=[edit])
    assert_refused(response, f"steering[0].{key}")
    message = response.json()["error"]["message"]
    assert "compiled in" in message
    assert message.endswith("add")


def compile_in(server: FakeServer, **layout: Any) -> None:
    """Let the server have another layout from now on."""
    extension: Any = server.extension
    old = extension._planner
    extension._planner = Planner(old._registry, EngineLayout(**layout), old._limits)


async def test_more_probes_than_columns_are_refused(server: FakeServer, client: Client) -> None:
    compile_in(server, readouts=2)
    assert (await client.chat(probes=["risk", "early"])).status_code == 200
    assert_refused(await client.chat(probes=["risk", "early", "truthfulness"]), "probes")


async def test_beam_search_without_our_fields_passes(client: Client) -> None:
    assert (await client.chat(use_beam_search=True, probes=[], steering=[])).status_code == 200


@pytest.mark.parametrize("span", [{"from": -3, "to": 0}, {"from": 2, "to": 2}, {"from": -1, "to": -1}])
def test_a_range_that_is_always_empty_is_refused_before_the_prompt_is_known(server: FakeServer, span: Any) -> None:
    with pytest.raises(BadRequest, match="select nothing"):
        server.extension.open({"steering": [{**HONEST, "positions": span}]}, "", "")


def test_the_same_inline_vector_is_decoded_once(server: FakeServer) -> None:
    plans = [server.extension.open({"steering": [{**INLINE, "strength": s}]}, "", "").plan for s in (1.0, 2.0)]
    assert plans[0].edits[0].direction is plans[1].edits[0].direction
    assert plans[0].edits[0].coefficients == {3: 1.0}


def test_layers_and_units_become_coefficients(server: FakeServer) -> None:
    def coefficients(**edit: Any) -> dict[int, float]:
        return dict(server.extension.open({"steering": [edit]}, "", "").plan.edits[0].coefficients)

    assert coefficients(vector="honest", strength=3) == {2: 3.0}
    assert coefficients(vector="honest", layers="all") == {1: 1.0, 2: 1.0, 3: 1.0}
    assert coefficients(vector="honest", layers=[3, 1], strength=-0.5) == {1: -0.5, 3: -0.5}
    assert coefficients(vector="honest", layers=[1, 2], unit="resid_norm", strength=0.5) == {1: 5.0, 2: 10.0}
    assert coefficients(sae="features", feature=2, strength=2) == {2: 10.0}
    assert coefficients(sae="features", feature=2, strength=2, unit="raw") == {2: 2.0}
    assert coefficients(sae="features", feature=0, strength=2) == {2: 2.0}, "this feature never fired"
    assert coefficients(sae="bare", feature=2, strength=2) == {2: 2.0}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["honest", "risk"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
EDIT_KEYS = [
    "vector",
    "sae",
    "feature",
    "inline",
    "op",
    "strength",
    "unit",
    "layers",
    "positions",
    "preserve_norm",
    "gate",
]
EDIT = st.dictionaries(
    st.sampled_from([*EDIT_KEYS, "x"]),
    JSON
    | st.sampled_from(["honest", "features", "add", "raw", "resid_norm", "all", "generation", 1, 2.5, [2]])
    | st.fixed_dictionaries({"from": st.integers(-20, 20), "to": st.integers(-20, 20)})
    | st.fixed_dictionaries({"layers": st.dictionaries(st.sampled_from(["1", "3", "x"]), st.just(ONES) | st.text())}),
    max_size=4,
)
PROBES = st.fixed_dictionaries({}, optional={"names": JSON, "tokens": JSON, "prompt": JSON})


@settings(max_examples=400, deadline=None)
@given(steering=JSON | st.lists(EDIT | EDIT.map(lambda e: {"vector": "honest", **e}), max_size=3), probes=JSON | PROBES)
def test_any_json_is_a_plan_or_a_bad_request(fuzzed: FakeServer, steering: Any, probes: Any) -> None:
    for fields in ({"steering": steering}, {"probes": probes}, {"steering": steering, "probes": probes}):
        try:
            session = fuzzed.extension.open(fields, "/v1/chat/completions", "tiny")
        except BadRequest as error:
            refused = error
        else:
            assert isinstance(session.plan, Plan)
            continue
        assert refused.param
        assert refused.param.startswith(("steering", "probes"))
        assert f"{refused}{refused.param}".encode()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> FakeServer:
    return FakeServer(write_all(tmp_path_factory.mktemp("fuzz")))
