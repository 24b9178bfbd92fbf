"""The platform's own worker, with a model runner that has sites. Given to vLLM by name (`--worker-cls`)."""

from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform

from pilothouse.core.errors import StartupError
from pilothouse.engine import reference
from pilothouse.engine.failure import report_startup_failure
from pilothouse.engine.runner import give_sites

if TYPE_CHECKING or current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as _PlatformWorker


class SteeringWorker(_PlatformWorker):
    """One tensor-parallel rank."""

    def init_device(self) -> None:
        super().init_device()
        give_sites(self.model_runner)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().load_model(*args, **kwargs)
        except StartupError as error:
            report_startup_failure(str(error))
            raise

    def pilothouse_reference(self, request: bytes) -> bytes | str | None:
        """A sequence through the slow and obvious path of `engine.reference`, encoded."""
        return reference.answer(self.model_runner, request)

    def pilothouse_poison(self) -> None:
        """Fill the scores with NaN, so that one that is not written shows."""
        self.model_runner.pilothouse_board.buffers.scores.fill_(torch.nan)

    def pilothouse_captures(self) -> list[tuple[str, int, bytes]]:
        """Streams kept since the last call (capture mode): request, layer, float32 bytes of [n_tokens, d_model].

        Bytes, because arrays do not survive the way from the engine's process.
        """
        captures = self.model_runner.pilothouse_board.take_captures()
        return [
            (request, layer, stream.tobytes())
            for request, streams in captures.items()
            for layer, stream in streams.items()
        ]
