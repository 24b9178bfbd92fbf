"""One sequence through the stages of a pipeline, outside any batch: each stage runs its layers and hands on what it has
come to, the last one answers.

Every stage is called at the same time, and one that fails would leave those behind it waiting; so it hands on why.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.distributed.parallel_state import get_pp_group
from vllm.sequence import IntermediateTensors

FAILURE, NOTES = "pilothouse_failure", "pilothouse_notes"


class Stage:
    """This stage's part. received: the stream of the stage before, None on the first; notes: what came with it."""

    def __init__(self, received: IntermediateTensors | None, notes: Any) -> None:
        self.received = received
        self.notes = notes

    def hand_on(self, output: Any, notes: Any) -> bool:
        """Send `output`, if it is a stage's and not the model's last, with `notes`; whether it was."""
        if not isinstance(output, IntermediateTensors):
            return False
        get_pp_group().send_tensor_dict({**output.tensors, NOTES: notes})
        return True


@contextmanager
def pipeline_stage(failed: Callable[[str], Exception]) -> Iterator[Stage]:
    """What this stage begins with. Where an earlier one failed, `failed` makes the exception of its reason."""
    group = get_pp_group()
    received: dict[str, Any] | None = None if group.is_first_rank else group.recv_tensor_dict()
    try:
        if received is not None and FAILURE in received:
            raise failed(received[FAILURE])
        notes = received.pop(NOTES) if received is not None else None
        yield Stage(None if received is None else IntermediateTensors(received), notes)
    except Exception as error:
        if not group.is_last_rank:
            group.send_tensor_dict({FAILURE: str(error)})
        raise
