"""Every operation, unit, selector and gate as requests write them, against the interface's words in Hugging Face."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from engine_support import by_hand
from engine_support.by_hand import ByHand, Outcome
from engine_support.harness import Engine, Reference, Result
from engine_support.matrix import (
    FEATURE,
    N_PROMPT,
    SHAPE,
    SOURCES,
    UNITS,
    Files,
    entries,
    entry_of,
    refused,
    write_files,
)
from engine_support.parity import LOGPROB_TOLERANCE, SCORE_TOLERANCE

from pilothouse.api.plans import Ask, Planner
from pilothouse.api.receipts import receipts
from pilothouse.api.registry import Registry
from pilothouse.core.config import Limits
from pilothouse.core.edits import OPERATIONS
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import edit_spans

pytestmark = pytest.mark.engine

MAX_TOKENS = 6
NEAR = 1e-4
"""Nearer than this to where a gate or a feature turns, in spreads, float32 may fall on either side."""
PROBES = {"names": ["watch"], "prompt": True}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, eager_qwen3: tuple[Engine, Reference]) -> tuple[Planner, Files]:
    config, files = write_files(tmp_path_factory.mktemp("matrix"))
    return Planner(Registry(config, SHAPE), eager_qwen3[0].layout, Limits()), files


def ask_for(planner: Planner, entry: dict[str, Any]) -> Ask:
    return planner.plan({"steering": [entry], "probes": PROBES})


def test_what_the_interface_refuses_is_refused_and_nothing_else(planned: tuple[Planner, Files]) -> None:
    planner, _ = planned
    found = 0
    for op, source, unit in itertools.product(OPERATIONS, SOURCES, UNITS):
        entry = entry_of(op, source, unit)
        if refused(entry):
            found += 1
            with pytest.raises(BadRequest) as caught:
                ask_for(planner, entry)
            assert caught.value.param in ("steering[0].op", "steering[0].unit"), entry
        else:
            ask_for(planner, entry)
    assert found == 39
    # A gate of scope token must not be read behind the edit; one of scope rest may be, and one that stops.
    gate = {"probe": "late", "when": "above", "threshold": 0.5}
    entry = entry_of("add", "vector", None)
    with pytest.raises(BadRequest) as caught:
        ask_for(planner, {**entry, "gate": gate})
    assert caught.value.param == "steering[0].gate.probe"
    for more in ({"scope": "rest"}, {"action": "stop"}):
        ask_for(planner, {**entry, "gate": {**gate, **more}})


def test_every_entry_does_what_the_interface_says(
    planned: tuple[Planner, Files], eager_qwen3: tuple[Engine, Reference]
) -> None:
    (planner, files), (engine, reference) = planned, eager_qwen3
    rng = np.random.default_rng(74)
    asked = [entry for entry in entries() if not refused(entry)]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    asks = [ask_for(planner, entry) for entry in asked]
    prompts = [[int(t) for t in rng.integers(1, 500, size=N_PROMPT)] for _ in asked]
    results = engine.run(prompts, [ask.plan for ask in asks], MAX_TOKENS)
    model = ByHand(reference.model, files)
    near, still, acting = 0, 0, list[bool]()
    for entry, ask, prompt, result in zip(asked, asks, prompts, results, strict=True):
        outcome = model.run(prompt, result.token_ids, entry)
        if outcome.nearest < NEAR:
            near += 1
            continue
        check_result(ask, outcome, result, entry)
        check_receipt(ask, outcome, result, entry, files)
        acts = outcome.acts[: N_PROMPT + MAX_TOKENS - 1]
        if "gate" in entry:
            acting.append(bool(acts.any()))
        else:
            assert acts.any(), entry
        plain = model.unedited(prompt, result.token_ids)
        moved = np.abs(outcome.watched - plain.watched)[: len(acts)].max()
        assert acts.any() or moved == 0.0, entry
        still += bool(acts.any()) and moved < 100 * SCORE_TOLERANCE * plain.watched.std()
    assert len(asked) == 33 * 6 * 3
    assert near <= 5
    assert 0.3 < np.mean(acting) < 0.9
    # A component may be between its bounds as it is, and a feature above its least.
    assert still <= 0.02 * len(asked), f"{still} edits move nothing, so the comparison shows nothing"


def check_result(ask: Ask, outcome: Outcome, result: Result, entry: dict[str, Any]) -> None:
    expected = [float(outcome.logprobs[i, token]) for i, token in enumerate(result.token_ids)]
    np.testing.assert_allclose(result.logprobs, expected, atol=LOGPROB_TOLERANCE, err_msg=str(entry))
    stop = N_PROMPT + MAX_TOKENS - 1
    logits = ask.probes[0].logits(result.track.scores(0, stop)[:, 0])
    difference = np.abs(logits - outcome.watched[:stop]).max()
    assert difference <= SCORE_TOLERANCE * outcome.watched.std(), entry


def check_receipt(ask: Ask, outcome: Outcome, result: Result, entry: dict[str, Any], files: Files) -> None:
    (receipt,) = receipts(ask.plan, edit_spans(ask.plan.edits, N_PROMPT), result.track)
    exact = {str(n): pytest.approx(c, rel=1e-12) for n, c in by_hand.coefficients(entry, files).items()}
    assert (receipt["op"], receipt["positions"], receipt["coefficients"]) == (entry["op"], entry["positions"], exact)
    if entry["op"] == "cap":
        for key, end in (("min", 0), ("max", 1)):
            ends = {str(n): pytest.approx(both[end], rel=1e-12) for n, both in by_hand.bounds(entry, files).items()}
            assert receipt[key] == ends
    acts = np.flatnonzero(outcome.acts[: N_PROMPT + MAX_TOKENS - 1])
    assert receipt["tokens_edited"] == len(acts), entry
    if "gate" in entry:
        assert receipt["gate"]["first_open"] == (int(acts[0]) if len(acts) else None), entry


def test_plans_have_the_hand_computed_numbers(planned: tuple[Planner, Files]) -> None:
    planner, files = planned
    for entry in entries():
        if refused(entry):
            continue
        (edit,) = ask_for(planner, entry).plan.edits
        assert dict(edit.coefficients) == pytest.approx(by_hand.coefficients(entry, files), rel=1e-12)
        assert edit.feature == (FEATURE if "sae" in entry else None)
        if entry["op"] == "cap":
            expected = by_hand.bounds(entry, files)
            assert all(edit.bounds[n] == pytest.approx(expected[n], rel=1e-12) for n in expected)
        for n, row in by_hand.layers_of(entry, files).items():
            np.testing.assert_array_equal(edit.direction.layers[n], row.astype(np.float32))
        assert math.isinf(edit.rule(min(edit.coefficients)).threshold) == (entry["op"] not in ("clamp", "min_clamp"))
