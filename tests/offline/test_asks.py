"""What a script may write for steering and probes, and what is refused before the engine hears of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_support.artefacts import CALM_ROWS, SHAPE, write_all

from pilothouse.api.plans import Planner
from pilothouse.api.registry import Registry
from pilothouse.core.config import EngineLayout, Limits
from pilothouse.core.errors import BadRequest, StartupError
from pilothouse.offline import LLM
from pilothouse.offline.llm import asks_for

ROW = np.linspace(-1, 1, SHAPE.d_model, dtype=np.float32)
IN_BASE64 = base64.b64encode(ROW.astype("<f4").tobytes()).decode()
CALM = [{"vector": "calm"}]


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(Registry(write_all(tmp_path), SHAPE), EngineLayout(), Limits())


def inline(key: Any, row: Any) -> list[dict[str, Any]]:
    return [{"inline": {"layers": {key: row}}, "strength": 2.0}]


@pytest.mark.parametrize(
    "row",
    [
        IN_BASE64,
        ROW,
        ROW.astype(">f4"),
        ROW.astype(np.float64),
        torch.from_numpy(ROW),
        torch.from_numpy(ROW).double().requires_grad_(),
        torch.from_numpy(ROW.repeat(2))[::2],
        ROW.tolist(),
        tuple(ROW.tolist()),
    ],
    ids=["base64", "float32", "big-endian", "float64", "tensor", "needs gradients", "strided", "list", "tuple"],
)
@pytest.mark.parametrize("key", ["3", 3, np.int64(3)])
def test_every_way_to_write_a_row_means_the_same(planner: Planner, key: Any, row: Any) -> None:
    (expected,) = asks_for(planner, inline("3", IN_BASE64), None, 1)
    (found,) = asks_for(planner, inline(key, row), None, 1)
    assert found.plan.edits[0].direction.digest == expected.plan.edits[0].direction.digest
    assert found.plan.edits[0].coefficients == {3: 2.0}


def test_narrower_numbers_are_widened(planner: Planner) -> None:
    halves = torch.tensor([0.5, -1.25] * (SHAPE.d_model // 2), dtype=torch.bfloat16)
    (found,) = asks_for(planner, inline(3, halves), None, 1)
    np.testing.assert_array_equal(found.plan.edits[0].direction.layers[3], halves.float().numpy())
    (whole,) = asks_for(planner, inline(3, torch.arange(SHAPE.d_model)), None, 1)
    np.testing.assert_array_equal(whole.plan.edits[0].direction.layers[3], np.arange(SHAPE.d_model))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ROW[None], "one row of real numbers"),
        (np.float32(1.0), "must be a string"),
        (ROW.astype(np.complex64), "one row of real numbers"),
        (ROW > 0, "one row of real numbers"),
        (ROW[:-1], "must be 8 float32 numbers"),
        (np.full(SHAPE.d_model, 1e300), "NaN or infinite"),
        (ROW * np.nan, "NaN or infinite"),
        (["a", "b"], "must be a string"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(planner: Planner, row: Any, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint) as caught:
        asks_for(planner, inline(3, row), None, 1)
    assert caught.value.param == "steering[0].inline.layers.3"
    assert isinstance(caught.value, ValueError)


def test_a_layer_given_twice_is_refused(planner: Planner) -> None:
    twice = [{"inline": {"layers": {3: ROW, "3": -ROW}}}]
    with pytest.raises(BadRequest, match="names a layer twice") as caught:
        asks_for(planner, twice, None, 1)
    assert caught.value.param == "steering[0].inline.layers"


def test_one_value_is_for_all_prompts_and_is_planned_once(planner: Planner) -> None:
    asks = asks_for(planner, ({"vector": "calm", "strength": np.float32(0.5)},), ["risk"], 3)
    assert len(asks) == 3
    assert all(ask is asks[0] for ask in asks)
    assert asks[0].plan.edits[0].coefficients == {3: 0.5}
    np.testing.assert_array_equal(asks[0].plan.edits[0].direction.layers[3], CALM_ROWS["layer.3"])
    assert [probe.name for probe in asks[0].probes] == ["risk"]


def test_each_prompt_may_have_its_own(planner: Planner) -> None:
    feature = {"sae": "features", "feature": 1}
    probes = [None, ["risk", feature], {"names": ["early"], "tokens": True}, []]
    asks = asks_for(planner, [CALM, None, [], CALM * 2], probes, 4)
    assert [len(ask.plan.edits) for ask in asks] == [1, 0, 0, 2]
    assert [ask.steering_given for ask in asks] == [True, False, True, True]
    assert [[probe.name for probe in ask.probes] for ask in asks] == [[], ["risk", "features/1"], ["early"], []]
    assert [ask.tokens for ask in asks] == [False, False, True, False]


def test_a_feature_in_a_list_is_one_entry_of_it(planner: Planner) -> None:
    asks = asks_for(planner, None, [{"sae": "features", "feature": 1}], 2)
    assert [[probe.name for probe in ask.probes] for ask in asks] == [["features/1"]] * 2


@pytest.mark.parametrize(
    ("steering", "probes", "param", "complaint"),
    [
        ([{"vector": "loud"}], None, "steering[0].vector", "there is no steering vector 'loud'"),
        ({"vector": "calm"}, None, "steering", "must be a list"),
        ([{"vector": "calm", "strenght": 1}], None, "steering[0].strenght", "is not a field"),
        ([{"vector": "calm", "layers": [99]}], None, "steering[0].layers[0]", "has no layer 99"),
        (None, ["nonsense"], "probes[0]", "there is no probe 'nonsense'"),
        (None, "risk", "probes", "must be a list of names or an object"),
        ([CALM, None], None, "steering", "2 values for 3 prompts"),
        ([CALM, {"vector": "calm"}, None], None, "steering", "not a mixture"),
        (None, [["risk"], "risk", None], "probes", "not a mixture"),
        ([None, CALM, [{"vector": "loud"}]], None, "steering[0].vector", "prompt 2: there is no steering vector"),
        (None, [None, {"names": ["risk"], "token": True}, None], "probes.token", "prompt 1: .* is not a field"),
    ],
)
def test_what_cannot_be_done_is_refused(
    planner: Planner, steering: Any, probes: Any, param: str, complaint: str
) -> None:
    with pytest.raises(BadRequest, match=complaint) as caught:
        asks_for(planner, steering, probes, 3)
    assert caught.value.param == param


@pytest.mark.parametrize("method", ["beam_search", "encode", "embed", "classify", "score"])
@pytest.mark.parametrize(("field", "value"), [("steering", CALM), ("probes", ["risk"]), ("steering", [])])
def test_what_cannot_carry_plans_says_so(method: str, field: str, value: Any) -> None:
    unstarted = object.__new__(LLM)
    with pytest.raises(BadRequest, match=f"{method} can be neither steered nor probed") as caught:
        getattr(unstarted, method)([], **{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"vectors": "no-such-folder"}, "no-such-folder: there is no such file or folder"),
        ({"probes": ["no-such-probes"]}, "no-such-probes: there is no such file or folder"),
        ({"worker_cls": "their.Worker"}, "worker_cls is taken"),
        ({"scheduler_cls": "their.Scheduler"}, "scheduler_cls is taken"),
        ({"data_parallel_rank": 0}, "data_parallel_rank: its"),
        ({"max_plans": 0}, "max_plans must be at least 1"),
        ({"max_edits": -1}, "max_edits must be at least 0"),
    ],
)
def test_what_cannot_start_is_refused_before_a_model_is_looked_for(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        LLM("no-such-model", **options)
