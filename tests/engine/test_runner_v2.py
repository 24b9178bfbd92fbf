"""The adapter of vLLM's V2 runner: the contract with its source, and its work on a runner that answers like it.

The V2 runner itself needs a Triton that this suite's CPU has not; what can be held without it is held here.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu.async_utils import AsyncOutput
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner, sort_batch_req_ids

from pilothouse.core.config import EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.messages import (
    ORDERS_ATTRIBUTE,
    READINGS_ATTRIBUTE,
    ReadoutLoad,
    RequestOrders,
    RowLoad,
    StepOrders,
    StepReadings,
    WireEdit,
    WireSpan,
    orders_encoder,
)
from pilothouse.engine.board import Board
from pilothouse.engine.runner import OutputWithReadings, SteeringRunnerV1, SteeringRunnerV2, give_sites
from pilothouse.engine.sites import Stream, install_sites

SIGNATURES = {
    "load_model": ["self", "load_dummy_weights"],
    "execute_model": ["self", "scheduler_output", "intermediate_tensors", "dummy_run"],
    "prepare_inputs": ["self", "scheduler_output", "batch_req_state", "batch_desc"],
    "sample_tokens": ["self", "grammar_output"],
    "_dummy_run": ["self", "num_tokens"],
    "capture_model": ["self"],
}
D_MODEL = 4
LAYOUT = EngineLayout(rows=4, rows_per_plan=2, readouts=2)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_an_overridden_method_has_the_signature_it_was_written_against(name: str) -> None:
    first = SIGNATURES[name]
    assert list(inspect.signature(getattr(GPUModelRunner, name)).parameters)[: len(first)] == first


def test_the_batch_has_what_the_row_map_is_made_of() -> None:
    fields = {field.name for field in dataclasses.fields(InputBatch)}
    assert {"req_ids", "num_reqs", "num_scheduled_tokens", "num_computed_tokens_np"} <= fields


def test_rows_are_mapped_for_real_steps_only_and_before_the_model_runs() -> None:
    source = inspect.getsource(GPUModelRunner.execute_model)
    prepared, ran = source.index("self.prepare_inputs("), source.index("self.model(**model_inputs)")
    assert prepared < ran
    assert "if not dummy_run" in source[:prepared]
    assert "dummy_run=True" in inspect.getsource(GPUModelRunner._dummy_run)


def test_its_output_is_waited_for_later() -> None:
    assert issubclass(AsyncOutput, AsyncModelRunnerOutput)
    assert "return async_output" in inspect.getsource(GPUModelRunner.sample_tokens)


def test_the_attributes_that_loading_reads_are_there() -> None:
    source = inspect.getsource(GPUModelRunner.__init__)
    names = ("vllm_config", "model_config", "scheduler_config", "compilation_config", "device", "max_num_tokens")
    for name in names:
        assert f"self.{name} = " in source, name


class Block(nn.Module):
    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream * 1.0


class Output(AsyncModelRunnerOutput):  # type: ignore[misc]
    def get_output(self) -> ModelRunnerOutput:
        return ModelRunnerOutput(req_ids=[], req_id_to_index={})


class Runner:
    """Answers as the V2 runner does: batches in its order, positions from its own state, output later."""

    def __init__(self) -> None:
        self.blocks = {0: Block(), 1: Block()}
        self.computed: dict[str, int] = {}
        self.streams: list[torch.Tensor] = []

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None, dummy_run: bool = False) -> None:
        self.dummy = dummy_run
        n_tokens = sum(scheduler_output.num_scheduled_tokens.values())
        if not dummy_run:
            self.batch = self.prepare_inputs(scheduler_output)
        stream = torch.ones(n_tokens, D_MODEL)
        for block in self.blocks.values():
            stream = block(stream)
        self.streams.append(stream)

    def prepare_inputs(self, scheduler_output: Any) -> Any:
        counts = scheduler_output.num_scheduled_tokens
        order = sort_batch_req_ids(counts, {}, 1)
        batch = SimpleNamespace(
            req_ids=order,
            num_reqs=len(order),
            num_scheduled_tokens=np.array([counts[r] for r in order], dtype=np.int32),
            num_computed_tokens_np=np.array([self.computed.get(r, 0) for r in order], dtype=np.int32),
        )
        for request_id in order:
            self.computed[request_id] = self.computed.get(request_id, 0) + counts[request_id]
        return batch

    def sample_tokens(self, grammar_output: Any = None) -> AsyncModelRunnerOutput:
        return Output()

    def _dummy_run(self, num_tokens: int) -> None:
        self.execute_model(SimpleNamespace(num_scheduled_tokens={"_dummy": num_tokens}), dummy_run=True)

    def capture_model(self) -> int:
        return 0


def make_runner() -> Any:
    runner: Any = Runner()
    give_sites(runner)
    device = torch.device("cpu")
    streams = dict.fromkeys(runner.blocks, Stream())
    buffers, sites = install_sites(
        runner.blocks, LAYOUT, streams, d_model=D_MODEL, dtype=torch.float32, max_tokens=64, device=device
    )
    runner.pilothouse_board = Board(LAYOUT, buffers, sites)
    return runner


def step(runner: Any, counts: dict[str, int], orders: StepOrders | None = None) -> tuple[torch.Tensor, Any]:
    scheduled = SimpleNamespace(num_scheduled_tokens=counts)
    if orders is not None:
        setattr(scheduled, ORDERS_ATTRIBUTE, orders_encoder.encode(orders))
    runner.execute_model(scheduled)
    return runner.streams[-1], runner.sample_tokens()


def one_steered_request() -> StepOrders:
    ones = Direction({0: np.ones(D_MODEL, np.float32), 1: np.ones(D_MODEL, np.float32)})
    edit = WireEdit(ones.digest, {0: 2.0})
    return StepOrders(
        directions={ones.digest: ones.payload},
        rows=(RowLoad(1, (edit,)),),
        readouts=(ReadoutLoad(1, ones.digest),),
        requests={"steered": RequestOrders((1,), (WireSpan(2, 4, 0),), (1,), 1)},
    )


def readings_of(output: Any) -> StepReadings:
    found: StepReadings = getattr(output.get_output(), READINGS_ATTRIBUTE)
    return found


def test_the_generation_of_a_runner_is_told_apart() -> None:
    assert isinstance(make_runner(), SteeringRunnerV2)
    v1: Any = type("V1", (), {"_prepare_inputs": lambda self, *args: None})()
    give_sites(v1)
    assert isinstance(v1, SteeringRunnerV1)


def test_rows_follow_the_order_of_its_batch_and_positions_its_own_count() -> None:
    runner = make_runner()
    # The V2 runner puts decoding requests first, then short prefills: not the scheduler's order.
    stream, first = step(runner, {"steered": 3, "long": 5, "decoding": 1}, one_steered_request())
    assert runner.batch.req_ids == ["decoding", "steered", "long"]
    edited = [float(row[0]) for row in stream]
    assert edited == [1, 1, 1, 3, 1, 1, 1, 1, 1]
    stream, second = step(runner, {"steered": 2, "decoding": 1})
    assert [float(row[0]) for row in stream] == [1, 3, 1]
    # Both were copied out before they are waited for.
    readings = [readings_of(first), readings_of(second)]
    assert isinstance(first, OutputWithReadings)
    assert [(r.request_ids, r.starts.tolist(), r.counts.tolist(), int(r.edited.sum())) for r in readings] == [
        (["steered"], [0], [3], 1),
        (["steered"], [3], [2], 1),
    ]
    # Layer 0 is read before its edit, layer 1 after it: 4 + 4, and 4 + 4 x 3 where it was edited.
    assert readings[0].scores[:, 1].tolist() == [8, 16]
    assert readings[1].scores[:, 1].tolist() == [16, 8]


def test_dummy_runs_and_capture_are_untouched_and_read_nothing() -> None:
    for untouched in ("_dummy_run", "capture_model"):
        runner = make_runner()
        step(runner, {"steered": 4}, one_steered_request())
        assert runner.pilothouse_board.buffers.rows.any()
        if untouched == "_dummy_run":
            runner._dummy_run(6)
            assert torch.equal(runner.streams[-1], torch.ones(6, D_MODEL))
        else:
            runner.capture_model()
        assert not runner.pilothouse_board.buffers.rows.any()
    assert not hasattr(step(runner, {"plain": 2})[1].get_output(), READINGS_ATTRIBUTE)
