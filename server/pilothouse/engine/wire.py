"""From a plan to what travels: positions resolved against the prompt, equal content shared by digest."""

import hashlib
import math
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from pilothouse.core.config import EngineLayout
from pilothouse.core.edits import Edit
from pilothouse.core.errors import BadRequest
from pilothouse.core.messages import CacheSpan, WireEdit, WireGate, WirePlan, WireSpan, WireStep, WireStop
from pilothouse.core.plans import Plan, edit_spans, segments

Span = tuple[int, int]


def largest_edit(d_model: int, largest_number: float) -> float:
    """How much all edits of a request may add to one component of the stream without anything overflowing.

    Norms square the stream in float32 and sum over d_model components; `largest_number` is that of the model's dtype.
    An overflow would put NaN into the request's cache blocks, and from there into those of whoever gets them next.
    """
    return min(1e-3 * math.sqrt(float(np.finfo(np.float32).max) / d_model), 0.25 * largest_number)


def resolve(
    plan: Plan, n_prompt: int, layout: EngineLayout, largest: float = math.inf
) -> tuple[WirePlan, list[tuple[int, int]]]:
    """The wire form of `plan` behind a prompt of `n_prompt` tokens, and the absolute span of each edit.

    BadRequest when a position range selects nothing, when the plan needs more rows, steps or columns than the engine
    has, or when its edits could add up to more than `largest` in one component of the stream.
    """
    spans = edit_spans(plan.edits, n_prompt)
    if not plan.reach <= largest:
        raise BadRequest(f"the edits add up to {plan.reach:.3g}; the stream overflows beyond {largest:.3g}", "steering")
    summed, chained = _divide(plan.edits, spans)
    rows, wire_spans = _rows(summed, spans, layout)
    edits = tuple(WireEdit(e.direction.digest, dict(e.coefficients)) for e in plan.edits) if rows else ()
    readouts = tuple(readout.direction.digest for readout in plan.readouts)
    if len(set(readouts)) > layout.readouts:
        raise BadRequest(f"{len(readouts)} probes asked for; this server reads {layout.readouts} at once", "probes")
    steps = tuple(_step(plan.edits[i], spans[i], readouts) for i in chained)
    if len(steps) > layout.chain_steps:
        raise BadRequest(
            f"{len(steps)} edits must follow one another; this server allows {layout.chain_steps} in one request, "
            "beside those that only add",
            "steering",
        )
    wire = WirePlan(
        edits=edits,
        rows=rows,
        row_keys=tuple(_row_key(tuple(plan.edits[i].digest for i in row)) for row in rows),
        spans=wire_spans,
        cache=tuple(
            CacheSpan(start, stop, edit.digest)
            for edit, (start, stop) in zip(plan.edits, spans, strict=True)
            if stop > start and not edit.is_identity()
        ),
        chain=_chain_digest(steps, readouts),
        steps=steps,
        stops=tuple(_stops(plan, spans, readouts)),
        readouts=readouts,
        read_from=0 if plan.prompt_scores else n_prompt - 1,
    )
    return wire, spans


def _divide(edits: tuple[Edit, ...], spans: list[Span]) -> tuple[list[int], list[int]]:
    """Numbers of the edits that are summed before all others, and of those that follow them one after another.

    An edit that only adds can go before one that it has no layer or no position in common with; else the order counts.
    """
    summed: list[int] = []
    chained: list[int] = []
    for i, edit in enumerate(edits):
        if edit.is_identity() or spans[i][0] >= spans[i][1]:
            continue
        free = edit.summable and not any(_meet(edit, spans[i], edits[j], spans[j]) for j in chained)
        (summed if free else chained).append(i)
    return summed, chained


def _meet(one: Edit, span: Span, other: Edit, other_span: Span) -> bool:
    overlap = max(span[0], other_span[0]) < min(span[1], other_span[1])
    return overlap and not set(one.coefficients).isdisjoint(other.coefficients)


def _rows(
    summed: list[int], spans: list[Span], layout: EngineLayout
) -> tuple[tuple[tuple[int, ...], ...], tuple[WireSpan, ...]]:
    """Distinct combinations of the summed edits, each a row, and the spans that take them."""
    live = [span if i in summed else (0, 0) for i, span in enumerate(spans)]
    found = segments(live)
    combinations = list(dict.fromkeys(segment.active for segment in found))
    if len(combinations) > layout.rows_per_plan or len(found) > 2 * layout.rows_per_plan:
        raise BadRequest(
            f"the position ranges overlap in {len(combinations)} different ways; this server allows "
            f"{layout.rows_per_plan} in one request",
            "steering",
        )
    number = {active: row for row, active in enumerate(combinations)}
    return tuple(combinations), tuple(WireSpan(s.start, s.stop, number[s.active]) for s in found)


@lru_cache(maxsize=4096)
def _row_key(digests: tuple[bytes, ...]) -> bytes:
    """What a row is shared by: its edits in their order, for sums of floating-point numbers depend on it."""
    return hashlib.sha256(b"pilothouse.row.1" + b"".join(digests)).digest()


def _step(edit: Edit, span: Span, readouts: tuple[bytes, ...]) -> WireStep:
    gate = edit.gate
    return WireStep(
        direction=edit.direction.digest,
        reader=edit.reader.direction.digest if edit.reader is not None else b"",
        rules={layer: tuple(edit.rule(layer)) for layer in edit.coefficients},
        preserve_norm=edit.preserve_norm,
        gate=None
        if gate is None
        else WireGate(readouts.index(gate.readout.digest), gate.above, gate.level, gate.latched),
        start=span[0],
        stop=span[1],
    )


def _stops(plan: Plan, spans: list[Span], readouts: tuple[bytes, ...]) -> Iterator[WireStop]:
    for edit, span in zip(plan.edits, spans, strict=True):
        gate = edit.gate
        if gate is not None and gate.stops:
            yield WireStop(readouts.index(gate.readout.digest), gate.above, gate.level, gate.label, *span)


def _chain_digest(steps: tuple[WireStep, ...], readouts: tuple[bytes, ...]) -> bytes:
    """What the engine holds of a chain: positions and latches are each request's own."""
    if not steps:
        return b""
    sha = hashlib.sha256(b"pilothouse.chain.1")
    for step in steps:
        sha.update(f"|{step.direction.hex()}|{step.reader.hex()}|{step.preserve_norm}".encode())
        for layer in sorted(step.rules):
            sha.update(f"|{layer}:".encode() + struct.pack(f"<{len(step.rules[layer])}d", *step.rules[layer]))
        if step.gate is not None and not step.gate.latched:
            sha.update(f"|{step.gate.above}:{step.gate.level.hex()}:".encode() + readouts[step.gate.readout])
    return sha.digest()
