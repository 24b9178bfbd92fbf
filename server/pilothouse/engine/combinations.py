"""What a plan cannot ask for because of how the engine runs: what a latch saw would come too late.

A gate of scope `rest` acts from the position behind the one at which its condition was met. Inside one pipeline stage,
and one step at a time, that is kept on the device. A stage cannot know in time what a later one reads; and a step that
verifies drafts runs several positions at once, the later ones before anyone knows what the earlier ones read.
"""

from dataclasses import dataclass
from typing import Any

from pilothouse.core.edits import Edit
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import Plan


@dataclass(frozen=True)
class Combinations:
    """stages: the pipeline stage of every layer; drafts: whether steps verify drafted tokens."""

    stages: tuple[int, ...]
    drafts: bool

    @classmethod
    def of(cls, vllm_config: Any) -> "Combinations":
        """For an engine of this VllmConfig."""
        from vllm.distributed.utils import get_pp_indices

        n_stages = vllm_config.parallel_config.pipeline_parallel_size
        n_layers = vllm_config.model_config.get_total_num_hidden_layers()
        ranges = [get_pp_indices(n_layers, stage, n_stages) for stage in range(n_stages)]
        stages = tuple(stage for stage, (start, stop) in enumerate(ranges) for _ in range(start, stop))
        return cls(stages, vllm_config.speculative_config is not None)

    def require(self, plan: Plan) -> None:
        """BadRequest for the first edit of `plan` that could not be carried out to the letter."""
        for i, edit in enumerate(plan.edits):
            gate = edit.gate
            if gate is None or not gate.latched or gate.stops:
                continue
            where = f"steering[{i}].gate.scope"
            if self.drafts:
                raise BadRequest(
                    "a gate of scope 'rest' cannot be kept under speculative decoding: drafted tokens run before it "
                    "is known whether the gate opens; scope 'token' can",
                    where,
                )
            self._require_same_stage(edit, where)

    def _require_same_stage(self, edit: Edit, where: str) -> None:
        assert edit.gate is not None
        read, edited = max(edit.gate.readout.layers), min(edit.coefficients)
        if self.stages[read] > self.stages[edited]:
            raise BadRequest(
                f"a gate of scope 'rest' cannot read layer {read}, on pipeline stage {self.stages[read]}, for an edit "
                f"of layer {edited} on stage {self.stages[edited]}, which runs before",
                where,
            )
