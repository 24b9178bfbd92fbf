"""From a plan to what travels: positions resolved against the prompt, equal content shared by digest."""

import hashlib
import math

import numpy as np

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import BadRequest
from pilothouse.core.messages import CacheSpan, WireEdit, WirePlan, WireSpan
from pilothouse.core.plans import Plan, edit_spans, segments


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

    BadRequest when a position range selects nothing, when the plan needs more rows or columns than the engine has, or
    when its edits could add up to more than `largest` in one component of the stream.
    """
    spans = edit_spans(plan.edits, n_prompt)
    total = sum(abs(c) * edit.direction.peaks[layer] for edit in plan.edits for layer, c in edit.coefficients.items())
    if not total <= largest:
        raise BadRequest(f"the edits add up to {total:.3g}; the stream overflows beyond {largest:.3g}", "steering")
    rows, wire_spans = _rows(plan, spans, layout)
    edits = tuple(WireEdit(e.direction.digest, dict(e.coefficients)) for e in plan.edits) if rows else ()
    readouts = tuple(readout.direction.digest for readout in plan.readouts)
    if len(set(readouts)) > layout.readouts:
        raise BadRequest(f"{len(readouts)} probes asked for; this server reads {layout.readouts} at once", "probes")
    wire = WirePlan(
        slot=_slot_digest(plan, rows),
        edits=edits,
        rows=rows,
        spans=wire_spans,
        cache=tuple(
            CacheSpan(start, stop, edit.digest)
            for edit, (start, stop) in zip(plan.edits, spans, strict=True)
            if stop > start and not edit.is_identity()
        ),
        readouts=readouts,
        read_from=0 if plan.prompt_scores else n_prompt - 1,
    )
    return wire, spans


def _rows(
    plan: Plan, spans: list[tuple[int, int]], layout: EngineLayout
) -> tuple[tuple[tuple[int, ...], ...], tuple[WireSpan, ...]]:
    """Distinct combinations of edits, each a row, and the spans that take them. Edits of strength zero need none."""
    live = [span if not edit.is_identity() else (0, 0) for edit, span in zip(plan.edits, spans, strict=True)]
    found = segments(live)
    combinations = list(dict.fromkeys(segment.active for segment in found))
    if len(combinations) > layout.rows_per_slot or len(found) > 2 * layout.rows_per_slot:
        raise BadRequest(
            f"the position ranges overlap in {len(combinations)} different ways; this server allows "
            f"{layout.rows_per_slot} in one request",
            "steering",
        )
    number = {active: row for row, active in enumerate(combinations)}
    return tuple(combinations), tuple(WireSpan(s.start, s.stop, number[s.active]) for s in found)


def _slot_digest(plan: Plan, rows: tuple[tuple[int, ...], ...]) -> bytes:
    if not rows:
        return b""
    sha = hashlib.sha256(repr(rows).encode())
    for edit in plan.edits:
        sha.update(edit.digest)
    return sha.digest()
