"""What a plan cannot ask for because of how the engine runs: what a latch saw would come too late.

A gate of scope `rest` acts from the position behind the one at which its condition was met. Inside one pipeline stage,
one step at a time, that is kept on the device. A stage cannot know in time what a later one reads; and a step that
verifies drafts runs several positions at once, the later ones before anyone knows what the earlier ones read.
"""

from collections.abc import Sequence

from pilothouse.core.edits import Edit
from pilothouse.core.errors import BadRequest
from pilothouse.core.sites import ModelShape


def require_possible(edits: Sequence[Edit], shape: ModelShape) -> None:
    """BadRequest for the first edit that an engine that runs a model in this way could not carry out to the letter."""
    for i, edit in enumerate(edits):
        if edit.gate is None or not edit.gate.latched:
            continue
        where = f"steering[{i}].gate.scope"
        if shape.drafts:
            raise BadRequest(
                "a gate of scope 'rest' cannot be kept under speculative decoding: drafted tokens run before it is "
                "known whether the gate opens; scope 'token' can",
                where,
            )
        read, edited = max(edit.gate.readout.layers), min(edit.coefficients)
        if shape.stage(read) > shape.stage(edited):
            raise BadRequest(
                f"a gate of scope 'rest' cannot read layer {read}, on pipeline stage {shape.stage(read)}, for an edit "
                f"of layer {edited} on stage {shape.stage(edited)}, which runs before",
                where,
            )
