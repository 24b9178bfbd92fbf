"""The in-process LLM of the embedded model against Hugging Face, also behind what vLLM's users do to a running one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support.harness import Reference
from offline_support.calls import (
    LONG,
    SMALL,
    Call,
    answered,
    calls,
    check_logprobs,
    check_scores,
    environment_as_it_was,
    fine_tuned,
    steered_and_read,
)

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import Plan
from pilothouse.harbor.paths import model_dir
from pilothouse.offline import LLM

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WAY = "in-process LLM"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with environment_as_it_was():
        made = LLM(**SMALL)
        yield made
        made.close()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(model_dir())


@pytest.fixture(scope="module")
def asked() -> list[Call]:
    return calls()


@pytest.fixture(scope="module")
def outputs(llm: LLM, asked: list[Call]) -> list[list[Any]]:
    """The batch from a cold and from a warm prefix cache."""
    return [answered(llm, asked) for _ in range(2)]


@pytest.mark.cell("ways", WAY, "readouts")
def test_readouts(outputs: list[list[Any]], asked: list[Call], reference: Reference) -> None:
    for run in outputs:
        for output, call in zip(run, asked, strict=True):
            if call.probes is None:
                assert output.outputs[0].probes is None
            else:
                check_scores(output, call.plan, reference)


@pytest.mark.cell("ways", WAY, "log-probabilities")
def test_log_probabilities(outputs: list[list[Any]], asked: list[Call], reference: Reference) -> None:
    for run in outputs:
        for output, call in zip(run, asked, strict=True):
            check_logprobs(output, call.plan, reference)
    steered, plain = outputs[0][2], outputs[0][1]
    predicted, _ = reference.run(steered.prompt_token_ids, steered.outputs[0].token_ids, asked[1].plan)
    expected = [float(predicted[i, token]) for i, token in enumerate(steered.outputs[0].token_ids)]
    found = [e[t].logprob for e, t in zip(steered.outputs[0].logprobs, steered.outputs[0].token_ids, strict=True)]
    assert np.abs(np.array(found) - expected).max() > 0.01, "steering changes what the model says"
    assert steered.outputs[0].probes != plain.outputs[0].probes


@pytest.mark.cell("ways", WAY, "receipts")
def test_receipts(outputs: list[list[Any]], asked: list[Call]) -> None:
    cold, warm = outputs
    for output, call in zip(cold, asked, strict=True):
        receipts = output.outputs[0].steering
        if call.steering is None:
            assert receipts is None
            continue
        for receipt, edit in zip(receipts, call.plan.edits, strict=True):
            assert receipt["digest"] == f"sha256:{edit.direction.digest.hex()}"
            assert receipt["coefficients"] == {str(layer): value for layer, value in edit.coefficients.items()}
    for run in outputs:
        # Six generated tokens, of which the last prompt token predicts the first and the last is not fed back.
        assert [receipt["tokens_edited"] for receipt in run[2].outputs[0].steering] == [6]
        assert [receipt["vector"] for receipt in run[2].outputs[0].steering] == ["honest"]
        ranged, everywhere = run[4].outputs[0].steering
        n_tokens = len(run[4].prompt_token_ids) + 5
        assert ranged["tokens_edited"] + ranged["tokens_from_cache"] == 4
        assert everywhere["tokens_edited"] + everywhere["tokens_from_cache"] == n_tokens
        assert (ranged["op"], everywhere["op"]) == ("add", "ablate")
    assert cold[4].outputs[0].steering[1]["tokens_from_cache"] == 0
    assert warm[4].outputs[0].steering[1]["tokens_from_cache"] == warm[4].num_cached_tokens == 32


@pytest.mark.cell("ways", WAY, "unsteered")
def test_unsteered(llm: LLM, reference: Reference, asked: list[Call]) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0)
    # As a script for vLLM calls it, also beside steered prompts of the same text.
    plain = [*llm.generate([LONG, LONG], params, use_tqdm=False), answered(llm, [asked[2], asked[0]])[1]]
    for output in plain:
        check_logprobs(output, Plan(), reference)
        assert (output.outputs[0].steering, output.outputs[0].probes) == (None, None)


@pytest.mark.cell("ways", WAY, "no leaks")
def test_no_leaks(llm: LLM, reference: Reference) -> None:
    rng = np.random.default_rng(29)
    before = answered(llm, [Call(LONG, None, None, Plan())])[0].outputs[0]
    many = []
    for _ in range(9):
        row = rng.normal(size=256).astype(np.float32)
        edit = Edit("inline", Direction({2: row}), {2: 2.0}, "all", source="inline")
        many.append(Call(LONG, [{"inline": {"layers": {2: row}}, "strength": 2.0}], None, Plan((edit,))))
    for output, call in zip(answered(llm, many), many, strict=True):
        check_logprobs(output, call.plan, reference)
    # The third prompt is too short for its range, which shows as it is added: the first two are given up.
    short = Call("Hi", [{"inline": {"layers": {2: row}}, "positions": {"from": -40, "to": -30}}], None, Plan())
    with pytest.raises(BadRequest, match="select nothing"):
        answered(llm, [many[0], many[1], short])
    assert not llm.llm_engine.has_unfinished_requests()
    after = answered(llm, [Call(LONG, None, None, Plan())])
    assert len(after) == 1
    check_logprobs(after[0], Plan(), reference)
    assert after[0].outputs[0].token_ids == before.token_ids
    client = llm.pilothouse_client
    assert not client._running
    assert not client.couriers.live
    assert not client._choices


def again_after_reset(llm: LLM) -> Any:
    """The call from a warm cache, and then once more from the cache as it is after it was reset."""
    call = steered_and_read()
    answered(llm, [call])
    assert answered(llm, [call])[0].num_cached_tokens > 0
    assert llm.reset_prefix_cache()
    output = answered(llm, [call])[0]
    assert output.num_cached_tokens == 0
    return output


@pytest.mark.cell("ways", "prefix-cache reset", "steering")
def test_steering_behind_a_reset(llm: LLM, reference: Reference) -> None:
    output = again_after_reset(llm)
    check_logprobs(output, steered_and_read().plan, reference)
    assert output.outputs[0].steering[0]["tokens_edited"] == len(output.prompt_token_ids) - 1


@pytest.mark.cell("ways", "prefix-cache reset", "no stale scores")
def test_scores_behind_a_reset(llm: LLM, reference: Reference) -> None:
    check_scores(again_after_reset(llm), steered_and_read().plan, reference)


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tuned(tmp_path_factory.mktemp("reload") / "harbor")


@pytest.fixture(scope="module")
def reloaded(llm: LLM, other_weights: Path) -> Iterator[list[Any]]:
    """The call under the model's own weights, and under others that the running engine has taken in since."""
    call = steered_and_read()
    before = answered(llm, [call, call])[1]
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(other_weights)})
    assert llm.reset_prefix_cache()
    yield [before, *answered(llm, [call]), *answered(llm, [call])]
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model_dir())})
    assert llm.reset_prefix_cache()


@pytest.mark.cell("ways", "weight reload", "steering")
def test_steering_behind_a_reload(reloaded: list[Any], reference: Reference, other_weights: Path) -> None:
    before, *after = reloaded
    check_logprobs(before, steered_and_read().plan, reference)
    changed = Reference(other_weights)
    for output in after:
        check_logprobs(output, steered_and_read().plan, changed)
    with pytest.raises(AssertionError):
        check_logprobs(after[0], steered_and_read().plan, reference)


@pytest.mark.cell("ways", "weight reload", "no stale scores")
def test_scores_behind_a_reload(reloaded: list[Any], reference: Reference, other_weights: Path) -> None:
    before, cold, warm = reloaded
    check_scores(before, steered_and_read().plan, reference)
    changed = Reference(other_weights)
    assert (cold.num_cached_tokens, warm.num_cached_tokens > 0) == (0, True)
    for output in (cold, warm):
        check_scores(output, steered_and_read().plan, changed)
    with pytest.raises(AssertionError):
        check_scores(cold, steered_and_read().plan, reference)


@pytest.fixture(scope="module")
def slept() -> Iterator[Any]:
    """The call after the engine slept, its weights taken from it; vLLM has no such sleep on some platforms."""
    with environment_as_it_was():
        try:
            made = LLM(**SMALL, enable_sleep_mode=True)
        except ValueError as error:
            said = next((line for line in str(error).splitlines() if "leep mode" in line), "")
            if not said:
                raise
            pytest.skip(said.strip().removeprefix("Value error, ").partition(" [type=")[0])
        try:
            call = steered_and_read()
            answered(made, [call, call])
            made.sleep(level=1)
            made.wake_up()
            yield answered(made, [call])[0]
        finally:
            made.close()


@pytest.mark.cell("ways", "sleep mode", "steering")
def test_steering_behind_sleep(slept: Any, reference: Reference) -> None:
    check_logprobs(slept, steered_and_read().plan, reference)


@pytest.mark.cell("ways", "sleep mode", "no stale scores")
def test_scores_behind_sleep(slept: Any, reference: Reference) -> None:
    check_scores(slept, steered_and_read().plan, reference)
