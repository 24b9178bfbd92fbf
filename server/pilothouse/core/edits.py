"""An edit: one rank-one change of the residual stream, and the numbers that make it each of the published ones.

With h the stream after a block (``hidden + residual``), r and v rows of d_model, every edit is

    x = reads * (h . r) + bias        a = x where x > threshold, else 0
    h += (alpha + beta * (clip(a, low, high) - a)) * writes * v

| op | alpha | beta | [low, high] | x |
|---|---|---|---|---|
| add | coefficient | 0 | | |
| ablate | 0 | coefficient | [0, 0] | the component along v |
| set | 0 | 1 | [coefficient, coefficient] | the component along v |
| cap | 0 | coefficient | the edit's bounds | the component along v |
| clamp | 0 | 1 | [coefficient, coefficient] | the pre-activation of an SAE feature, v its decoder row |
| min_clamp | 0 | 1 | [coefficient, infinity] | the same |

Clamping so leaves what the SAE does not reconstruct as it is (Templeton et al. 2024, "Scaling Monosemanticity").
"""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from pilothouse.core.directions import Direction

Operation = Literal["add", "ablate", "set", "cap", "clamp", "min_clamp"]
OPERATIONS: tuple[Operation, ...] = ("add", "ablate", "set", "cap", "clamp", "min_clamp")
ALONG_VECTOR: tuple[Operation, ...] = ("ablate", "set", "cap")
"""Operations on the component of the stream along the edit's own direction."""
OF_FEATURE: tuple[Operation, ...] = ("clamp", "min_clamp")
"""Operations on the activation of an SAE feature."""

NO_THRESHOLD = -math.inf


@dataclass(frozen=True)
class PositionRange:
    """``from`` inclusive, ``to`` exclusive; negative numbers count back from the end of the prompt."""

    start: int
    stop: int


NamedPositions = Literal["all", "prompt", "generation", "last_prompt"]
Positions = NamedPositions | PositionRange


class Rule(NamedTuple):
    """The numbers of one edit at one layer, as the module's formula names them."""

    alpha: float = 0.0
    beta: float = 0.0
    low: float = 0.0
    high: float = 0.0
    bias: float = 0.0
    threshold: float = NO_THRESHOLD
    reads: float = 0.0
    writes: float = 1.0


@dataclass(frozen=True, eq=False)
class Reader:
    """What a feature's activation is read by: x = h . direction.layers[L] + bias, 0 unless x > threshold."""

    direction: Direction
    bias: float = 0.0
    threshold: float = NO_THRESHOLD


@dataclass(frozen=True, eq=False)
class Gate:
    """An edit acts where the readout z = sum over layers of h_L . readout.layers[L] is beyond `level`.

    label: the probe's name; above: beyond means z > level, else z < level. scope ``token``: at each position by itself,
    so no layer of the readout may lie behind the edit; ``rest``: from the next generated token on, once any position
    was beyond. stops: instead of the edit, the generation ends with the token that the first such position predicts.
    """

    label: str
    readout: Direction
    above: bool
    level: float
    scope: Literal["token", "rest"] = "token"
    stops: bool = False

    @property
    def latched(self) -> bool:
        return self.scope == "rest" and not self.stops

    @property
    def digest(self) -> bytes:
        """Identity of when it opens."""
        return self.readout.digest + f"{self.above}|{self.level.hex()}|{self.scope}".encode()


@dataclass(frozen=True, eq=False)
class Edit:
    """Change the stream after block L, for each L of `coefficients`, at `positions`.

    label: what the client called the direction; it appears in receipts and, when configured, in metrics. coefficients:
    by layer, what `op` says: what the direction is multiplied by (add), the value (set, clamp, min_clamp), or how much
    of the change is made, 1 being all of it (ablate, cap). bounds: of cap, by layer. reader: of clamp and min_clamp.
    preserve_norm: the stream is rescaled to the length that it had before the edit.
    """

    label: str
    direction: Direction
    coefficients: Mapping[int, float]
    positions: Positions
    op: Operation = "add"
    source: Literal["vector", "sae", "inline"] = "vector"
    feature: int | None = None
    bounds: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    reader: Reader | None = None
    preserve_norm: bool = False
    gate: Gate | None = None

    @property
    def summable(self) -> bool:
        """Whether it adds the same row wherever it acts, so that several such are one sum."""
        return self.op == "add" and not self.preserve_norm and self.gate is None

    @cached_property
    def digest(self) -> bytes:
        """Identity of the change, coefficients included, positions not."""
        sha = hashlib.sha256(self.direction.digest)
        if self.reader is not None:
            sha.update(b"|reader" + self.reader.direction.digest)
        if self.gate is not None:
            sha.update(b"|gate" + self.gate.digest)
        for layer in sorted(self.coefficients):
            sha.update(f"|{self.op}:{self.preserve_norm}:{layer}:".encode())
            sha.update(struct.pack(f"<{len(Rule._fields)}d", *self.rule(layer)))
        return sha.digest()

    def is_identity(self) -> bool:
        """True when nothing would change, whatever the stream."""
        if self.gate is not None and self.gate.stops:
            return True
        changes = self.op in ("add", "ablate", "cap")
        return changes and all(c == 0.0 for c in self.coefficients.values())

    def rule(self, layer: int) -> Rule:
        """The formula's numbers at `layer`."""
        value = self.coefficients[layer]
        if self.op == "add":
            return Rule(alpha=value)
        if self.op in OF_FEATURE:
            assert self.reader is not None, "clamping needs the feature's encoder"
            high = math.inf if self.op == "min_clamp" else value
            return Rule(0.0, 1.0, value, high, self.reader.bias, self.reader.threshold, 1.0, 1.0)
        low, high, beta = 0.0, 0.0, value
        if self.op == "set":
            low, high, beta = value, value, 1.0
        elif self.op == "cap":
            low, high = self.bounds[layer]
        length = self.direction.lengths[layer]
        return Rule(0.0, beta, low, high, 0.0, NO_THRESHOLD, 1.0 / length, 1.0 / length)

    def reach(self, layer: int) -> float:
        """How much the edit may put into one component of the stream at `layer`, whatever the stream."""
        rule = self.rule(layer)
        if self.op == "add":
            amount = abs(rule.alpha)
        else:
            amount = max((abs(bound) for bound in (rule.low, rule.high) if math.isfinite(bound)), default=0.0)
        return amount * rule.writes * self.direction.peaks[layer]

    def push(self, layer: int) -> float:
        """The length of what the edit may put into the stream at `layer`. What it only takes away does not count: an
        ablation, or a cap between whose bounds zero lies."""
        if self.gate is not None and self.gate.stops:
            return 0.0
        value, length = self.coefficients[layer], self.direction.lengths[layer]
        match self.op:
            case "add" | "clamp":
                return abs(value) * length
            case "min_clamp":
                return max(value, 0.0) * length
            case "set":
                return abs(value)
            case "cap":
                low, high = self.bounds[layer]
                return value * max(low, -high, 0.0)
        return 0.0
