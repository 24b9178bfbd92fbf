"""What travels between the API process, the engine core and the workers. Plain, frozen, and small.

The API process puts an encoded `WirePlan` under `PLAN_KEY` in a request's extra arguments, and the content of new
directions under `DIRECTIONS_KEY` (`NONCE_KEY` only finds the request again in the API process itself). The scheduler
turns it into `StepOrders` for the workers, attached to the step's scheduler output, and encoded, since to pickle them
takes six times as long. The workers answer with `StepReadings` or `StepRepeat`, attached to the step's model output.
From these the scheduler makes an encoded `Reading` for a request, under `READING_KEY`, and where answers show readings
at once an encoded list of `LiveReadings` for all requests of a client, under `LIVE_KEY` of one of them.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pilothouse.core.sites import Float32

PLAN_KEY = "pilothouse.plan"
DIRECTIONS_KEY = "pilothouse.directions"
NONCE_KEY = "pilothouse.nonce"
RESERVED_KEYS = (PLAN_KEY, DIRECTIONS_KEY, NONCE_KEY)
READING_KEY = "pilothouse.reading"
LIVE_KEY = "pilothouse.live"
ORDERS_ATTRIBUTE = "pilothouse_orders"
READINGS_ATTRIBUTE = "pilothouse_readings"
STAGE_KEY = "pilothouse_scores"
"""Under which a pipeline stage hands the readouts of its layers to the next, beside the stream."""

Payload = dict[int, bytes]
"""One direction: little-endian float32 bytes by layer."""


class WireEdit(msgspec.Struct, frozen=True, array_like=True):
    """One direction by digest and what it is multiplied by at each layer."""

    direction: bytes
    coefficients: dict[int, float]


class WireGate(msgspec.Struct, frozen=True, array_like=True):
    """Readout number `readout` of the plan must be beyond `level`; latched: it need have been once, at an earlier
    position."""

    readout: int
    above: bool
    level: float
    latched: bool


class WireStop(msgspec.Struct, frozen=True, array_like=True):
    """The sequence ends with the token predicted at the first of the positions [start, stop) where readout number
    `readout` of the plan is beyond `level`; probe: what the reason calls it."""

    readout: int
    above: bool
    level: float
    probe: str
    start: int
    stop: int


class WireStep(msgspec.Struct, frozen=True, array_like=True):
    """One edit of a chain: the row v by digest, the row r by digest (empty where it is v), the numbers of a `Rule` by
    layer, and the positions [start, stop) where it acts."""

    direction: bytes
    reader: bytes
    rules: dict[int, tuple[float, ...]]
    preserve_norm: bool
    gate: WireGate | None
    start: int
    stop: int


class WireSpan(msgspec.Struct, frozen=True, array_like=True):
    """Positions [start, stop) take the plan's row number `row`."""

    start: int
    stop: int
    row: int


class CacheSpan(msgspec.Struct, frozen=True, array_like=True):
    """Positions [start, stop) are edited by the edit with this digest: part of the key of blocks that it touches."""

    start: int
    stop: int
    edit: bytes


class WirePlan(msgspec.Struct, frozen=True, array_like=True):
    """A plan resolved against its prompt.

    rows: for each row, the numbers of the edits that are summed in it; row_keys: digest of each row's edits; chain:
    digest of the steps (empty when there are none), positions and readout numbers aside; steps: edits that act one
    after another, behind the row's sum; stops: what ends the sequence; readouts: digests of the readout directions;
    read_from: first position whose readouts are sent back; gather: readings may wait for one another until the
    sequence ends, for nobody looks at them before.
    """

    edits: tuple[WireEdit, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    row_keys: tuple[bytes, ...] = ()
    spans: tuple[WireSpan, ...] = ()
    cache: tuple[CacheSpan, ...] = ()
    chain: bytes = b""
    steps: tuple[WireStep, ...] = ()
    stops: tuple[WireStop, ...] = ()
    readouts: tuple[bytes, ...] = ()
    read_from: int = 0
    gather: bool = False

    @property
    def named(self) -> set[bytes]:
        """Digests of all directions that the plan needs."""
        return {edit.direction for edit in self.edits} | self.chained | set(self.readouts)

    @property
    def chained(self) -> set[bytes]:
        """Digests of the directions that the steps need."""
        return {digest for step in self.steps for digest in (step.direction, step.reader) if digest}

    @property
    def gated(self) -> bool:
        """Whether a step has a gate."""
        return any(step.gate is not None for step in self.steps)

    @property
    def latched(self) -> bool:
        """Whether a step depends on what earlier positions read: their blocks cannot come from the prefix cache."""
        return any(step.gate is not None and step.gate.latched for step in self.steps)


class WireDirections(msgspec.Struct, frozen=True, array_like=True):
    """Content of directions that the engine has not been sent by this client, and digests that it will not name again
    before it has sent them anew."""

    content: dict[bytes, Payload] = {}
    forget: tuple[bytes, ...] = ()


class StepCost(NamedTuple):
    """What steps that ran a request with a plan took of the worker's own time, in seconds, beside the model's forward:
    to say which token takes which row (prepare), and to take out what was read (read)."""

    steps: int = 0
    prepare: float = 0.0
    read: float = 0.0

    def plus(self, other: "StepCost") -> "StepCost":
        """Both together."""
        return StepCost(self.steps + other.steps, self.prepare + other.prepare, self.read + other.read)


class LiveReadings(msgspec.Struct, frozen=True, array_like=True):
    """Readouts of one step of decoding, of all those requests of one client whose answers show them at once.

    Request k ran the position starts[k] + advanced, edited where edited[k] is 1; scores: float32 bytes [requests,
    readouts of each], which all have as many of; empty where none was read. cost: as of `Reading`.
    """

    request_ids: tuple[str, ...]
    starts: tuple[int, ...]
    edited: tuple[int, ...]
    advanced: int
    scores: bytes
    cost: StepCost = StepCost()


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """Readouts of one request from one or more steps.

    runs: (first position, number of positions, number of them edited) for each stretch that was forwarded; scores:
    float32 bytes [n, readouts of the request], for the positions listed in `score_runs` as (first, number); cached:
    positions before this one were in the prefix cache when the request started, or started again after preemption;
    cost: of all requests' steps since the last reading that said so, for one request of a step carries it for all.
    """

    runs: tuple[tuple[int, int, int], ...] = ()
    score_runs: tuple[tuple[int, int], ...] = ()
    scores: bytes = b""
    cached: int = 0
    cost: StepCost = StepCost()


plan_encoder = msgspec.msgpack.Encoder()
plan_decoder = msgspec.msgpack.Decoder(WirePlan)
directions_encoder = msgspec.msgpack.Encoder()
directions_decoder = msgspec.msgpack.Decoder(WireDirections)
reading_encoder = msgspec.msgpack.Encoder()
reading_decoder = msgspec.msgpack.Decoder(Reading)
live_encoder = msgspec.msgpack.Encoder()
live_decoder = msgspec.msgpack.Decoder(list[LiveReadings])


class RowLoad(msgspec.Struct, frozen=True, array_like=True):
    """Fill row `row` of the banks: it becomes the sum over the edits of coefficient x direction, by layer."""

    row: int
    edits: tuple[WireEdit, ...]


class ChainLoad(msgspec.Struct, frozen=True, array_like=True):
    """Fill chain `chain` with these steps; columns: where the readout of each step's gate is, 0 where it has none."""

    chain: int
    steps: tuple[WireStep, ...]
    columns: tuple[int, ...]


class ReadoutLoad(msgspec.Struct, frozen=True, array_like=True):
    """Fill readout column `column` with this direction."""

    column: int
    direction: bytes


class RequestOrders(msgspec.Struct, frozen=True, array_like=True):
    """A request that starts: where its positions find their rows and steps and which columns are its readouts.

    rows: of the banks, for each row of its plan.
    """

    rows: tuple[int, ...]
    spans: tuple[WireSpan, ...]
    columns: tuple[int, ...]
    read_from: int
    chain: int = 0
    steps: tuple[WireStep, ...] = ()


class StepOrders(msgspec.Struct, frozen=True, array_like=True):
    """Changes for the workers before a step; applied in the order of the fields."""

    retire: tuple[str, ...] = ()
    forget: tuple[bytes, ...] = ()
    directions: dict[bytes, Payload] = {}
    rows: tuple[RowLoad, ...] = ()
    chains: tuple[ChainLoad, ...] = ()
    readouts: tuple[ReadoutLoad, ...] = ()
    requests: dict[str, RequestOrders] = {}


orders_encoder = msgspec.msgpack.Encoder()
orders_decoder = msgspec.msgpack.Decoder(StepOrders)


@dataclass
class StepReadings:
    """What one step ran for the requests that have a plan: parallel lists, one entry a request.

    Request k ran counts[k] positions from starts[k]; edited[sum(counts[:k]):] says of each whether it was edited, for
    the scheduler alone knows which of them were drafts that have been rejected. The readouts of its last scored[k]
    positions are rows sum(scored[:k]) onward of scores, [sum of scored, readout columns] float32. cost: of this step,
    and of the preparations of such before it as ran no request with a plan.

    batch: a number for all but the scores and the cost, which steps have in common that repeat one another `advanced`
    positions further.
    """

    request_ids: list[str]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    edited: npt.NDArray[np.bool_]
    scored: npt.NDArray[np.int64]
    scores: Float32
    cost: StepCost = field(default_factory=StepCost)
    batch: int = 0
    advanced: int = 0


StepRepeat = tuple[int, int, bytes, float, float]
"""What a step sends instead that repeats one of which the scheduler has been told: batch, advanced and the bytes of
scores as of `StepReadings`, prepare and read as of `StepCost`. A plain tuple, since every step of decoding is pickled
while the worker's core has nothing else to do."""
