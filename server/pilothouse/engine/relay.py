"""One sequence through the stages of a pipeline, outside any batch: each stage runs its layers and hands on what it has
come to, the last one answers.

Every stage is called at the same time, and one that fails would leave those behind it waiting; so it hands on why.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from vllm.distributed.parallel_state import get_pp_group
from vllm.sequence import IntermediateTensors

FAILURE, NOTES = "pilothouse_failure", "pilothouse_notes"


class Stage:
    """This stage's part. received: the stream of the stage before, None on the first; notes: what came with it."""

    def __init__(self, received: IntermediateTensors | None, notes: bytes | None) -> None:
        self.received = received
        self.notes = notes

    def hand_on(self, output: object, notes: bytes) -> bool:
        """Send `output`, if it is a stage's and not the model's last, with `notes`; whether it was."""
        if not isinstance(output, IntermediateTensors):
            return False
        device = next(iter(output.tensors.values())).device
        get_pp_group().send_tensor_dict({**output.tensors, NOTES: _packed(notes).to(device)})
        return True


@contextmanager
def pipeline_stage(failed: Callable[[str], Exception], device: torch.device) -> Iterator[Stage]:
    """What this stage begins with. Where an earlier one failed, `failed` makes the exception of its reason."""
    group = get_pp_group()
    received: dict[str, torch.Tensor] | None = None if group.is_first_rank else group.recv_tensor_dict()
    try:
        if received is not None and FAILURE in received:
            raise failed(_unpacked(received[FAILURE]).decode())
        notes = _unpacked(received.pop(NOTES)) if received is not None else None
        yield Stage(None if received is None else IntermediateTensors(received), notes)
    except Exception as error:
        if not group.is_last_rank:
            group.send_tensor_dict({FAILURE: _packed(str(error).encode() or b"?").to(device)})
        raise


def _packed(data: bytes) -> torch.Tensor:
    """As uint8: between CPUs vLLM sends nothing but tensors."""
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def _unpacked(data: torch.Tensor) -> bytes:
    return bytes(data.cpu().numpy().tobytes())
