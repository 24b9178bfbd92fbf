"""Model runners with sites: installed at load, rows mapped once the batch order is final, readings attached.

Seams: the V1 `GPUModelRunner` of vllm/v1/worker/gpu_model_runner.py with its CPU subclass, and the V2 `GPUModelRunner`
of vllm/v1/worker/gpu/model_runner.py (load_model, execute_model, sample_tokens, _dummy_run, capture_model of both;
_prepare_inputs and sync_and_gather_intermediate_tensors of V1, prepare_inputs of V2), held by contract tests.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from vllm.distributed.parallel_state import get_pp_group
from vllm.sequence import IntermediateTensors
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput

from pilothouse.core.config import LAYOUT_KEY, EngineLayout
from pilothouse.core.messages import ORDERS_ATTRIBUTE, READINGS_ATTRIBUTE, STAGE_KEY, orders_decoder
from pilothouse.engine.adapters import without_adapters
from pilothouse.engine.board import Board, PendingReadings
from pilothouse.engine.forms import make_forms
from pilothouse.engine.placement import N_TOKENS, find_blocks, find_streams
from pilothouse.engine.sites import FULL, Form, Stream, install_sites

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as _Base
else:
    _Base = object


def layout_of(vllm_config: Any) -> EngineLayout:
    """The hook layout that the launcher merged into vLLM's additional configuration."""
    return EngineLayout.from_dict(vllm_config.additional_config[LAYOUT_KEY])


class SteeringRunner(_Base):
    """What both runners share. Mixed in front of the platform's own class; adds no step, only work around vLLM's."""

    pilothouse_board: Board
    pilothouse_blocks: dict[int, nn.Module]
    pilothouse_streams: dict[int, Stream]
    pilothouse_forms: tuple[Form, ...] = ()
    pilothouse_rehearsed = FULL
    """What runs without requests are to need of the sites."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        layout = layout_of(self.vllm_config)
        d_model, dtype = self.model_config.get_hidden_size(), self.model_config.dtype
        blocks = find_blocks(self.model, self.model_config.get_total_num_hidden_layers())
        without_adapters(self, N_TOKENS)
        streams = find_streams(self.model, blocks, self.vllm_config, d_model=d_model, dtype=dtype, device=self.device)
        buffers, sites = install_sites(
            blocks,
            layout,
            streams,
            d_model=d_model,
            dtype=dtype,
            max_tokens=self._pilothouse_max_tokens(),
            device=self.device,
            first_stage=get_pp_group().is_first_rank,
        )
        self.pilothouse_blocks, self.pilothouse_streams = blocks, streams
        self.pilothouse_board = Board(layout, buffers, sites)
        if not layout.capture:
            self.pilothouse_forms = make_forms(self.model, sites, blocks, lambda: buffers.needed)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        orders = getattr(scheduler_output, ORDERS_ATTRIBUTE, None)
        if orders is not None:
            self.pilothouse_board.obey(orders_decoder.decode(orders))
        output = super().execute_model(scheduler_output, *args, **kwargs)
        if isinstance(output, IntermediateTensors):
            scores = self.pilothouse_board.hand_on()
            if scores is not None:
                output.tensors[STAGE_KEY] = scores
        return output

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        output = super().sample_tokens(*args, **kwargs)
        if isinstance(output, AsyncModelRunnerOutput):
            pending = self.pilothouse_board.start_reading()
            return output if pending is None else OutputWithReadings(output, pending)
        readings = self.pilothouse_board.readings()
        if readings is not None and output is not None and output is not EMPTY_MODEL_RUNNER_OUTPUT:
            setattr(output, READINGS_ATTRIBUTE, readings)
        return output

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        self.pilothouse_board.reset(self.pilothouse_rehearsed)
        return super()._dummy_run(*args, **kwargs)

    def capture_model(self, *args: Any, **kwargs: Any) -> Any:
        self.pilothouse_board.reset()
        return super().capture_model(*args, **kwargs)

    def _pilothouse_max_tokens(self) -> int:
        """Tokens of the largest padded batch: buffers are never bound anew after tracing."""
        captured: int = self.compilation_config.max_cudagraph_capture_size or 0
        return max(int(self.max_num_tokens), captured, int(self.scheduler_config.max_num_seqs)) + 64


class SteeringRunnerV1(SteeringRunner):
    """For vLLM's V1 runner, the one that runs on CPU."""

    intermediate_tensors: IntermediateTensors | None

    def warming_up_model(self) -> None:
        """vLLM's on CPU, which compiles; for each form."""
        for form in (*self.pilothouse_forms, FULL):
            self.pilothouse_rehearsed = form
            super().warming_up_model()

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        batch = self.input_batch
        computed = batch.num_computed_tokens_cpu[: batch.num_reqs]
        self.pilothouse_board.map_tokens(batch.req_ids, num_scheduled_tokens, computed)
        return prepared

    def sync_and_gather_intermediate_tensors(
        self, num_tokens: int, intermediate_tensors: IntermediateTensors | None, sync_self: bool
    ) -> IntermediateTensors:
        if sync_self and intermediate_tensors is not None:
            # vLLM copies every key that it finds here into a buffer of its own, and has none for this one.
            self.pilothouse_board.take_over(intermediate_tensors.tensors.pop(STAGE_KEY, None))
        if self.intermediate_tensors is None:
            # vLLM makes it in the warm-up, which it leaves out for eager models on a CPU.
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return super().sync_and_gather_intermediate_tensors(num_tokens, intermediate_tensors, sync_self)


class SteeringRunnerV2(SteeringRunner):
    """For vLLM's V2 runner, its default on GPU."""

    def execute_model(
        self, scheduler_output: Any, intermediate_tensors: IntermediateTensors | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if intermediate_tensors is not None:
            self.pilothouse_board.take_over(intermediate_tensors.tensors.get(STAGE_KEY))
        return super().execute_model(scheduler_output, intermediate_tensors, *args, **kwargs)

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        batch: InputBatch = super().prepare_inputs(*args, **kwargs)
        counts = batch.num_scheduled_tokens[: batch.num_reqs]
        computed = batch.num_computed_tokens_np[: batch.num_reqs]
        self.pilothouse_board.map_tokens(batch.req_ids, counts, computed)
        return batch


class OutputWithReadings(AsyncModelRunnerOutput):
    """An asynchronous output whose readings join it when it is waited for."""

    def __init__(self, inner: AsyncModelRunnerOutput, pending: PendingReadings) -> None:
        self._inner = inner
        self._pending = pending

    def get_output(self) -> ModelRunnerOutput:
        output = self._inner.get_output()
        setattr(output, READINGS_ATTRIBUTE, self._pending.take())
        return output


def give_sites(runner: Any) -> None:
    """Put the mixin for its generation in front of the class of a runner that has not loaded its model yet."""
    base = type(runner)
    mixin = SteeringRunnerV1 if hasattr(base, "_prepare_inputs") else SteeringRunnerV2
    runner.__class__ = type(f"Steering{base.__name__}", (mixin, base), {})
