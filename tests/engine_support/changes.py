"""What each kind of edit does to the stream, written down a second time, as its paper says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pilothouse.core.edits import Edit
from pilothouse.core.plans import END, Plan

Float64 = npt.NDArray[np.float64]


def changed(states: Float64, edit: Edit, layer: int) -> Float64:
    """`states` [n, d_model] after the edit at `layer`, gates aside."""
    row = edit.direction.layers[layer].astype(np.float64)
    value = edit.coefficients[layer]
    if edit.op == "add":
        after = states + value * row
    elif edit.op in ("clamp", "min_clamp"):
        assert edit.reader is not None
        seen = states @ edit.reader.direction.layers[layer].astype(np.float64) + edit.reader.bias
        active = np.where(seen > edit.reader.threshold, seen, 0.0)
        wanted = np.full_like(active, value) if edit.op == "clamp" else np.maximum(active, value)
        after = states + np.outer(wanted - active, row)
    else:
        unit = row / np.linalg.norm(row)
        component = states @ unit
        if edit.op == "ablate":
            after = states - value * np.outer(component, unit)
        elif edit.op == "set":
            after = states - np.outer(component, unit) + value * unit
        else:
            capped = np.minimum(np.maximum(component, edit.bounds[layer][0]), edit.bounds[layer][1])
            after = states + value * np.outer(capped - component, unit)
    if edit.preserve_norm:
        after = after * (np.linalg.norm(states, axis=1) / np.linalg.norm(after, axis=1))[:, None]
    return after


def visit(
    states: Float64, layer: int, plan: Plan, spans: Sequence[tuple[int, int]], seen: Float64, opened: Sequence[int]
) -> Float64:
    """`states` [n_tokens, d_model] after all edits of `plan` at `layer`, in order.

    seen: [n_tokens, readouts] as read so far; opened: by edit, the first position at which a latched gate's condition
    was met.
    """
    positions = np.arange(len(states))
    states = states.copy()
    for edit, (start, stop), first in zip(plan.edits, spans, opened, strict=True):
        if layer not in edit.coefficients or (edit.gate is not None and edit.gate.stops):
            continue
        acts = (positions >= start) & (positions < stop)
        if edit.gate is not None:
            acts &= (positions > first) if edit.gate.latched else met(edit, plan, seen)
        states[acts] = changed(states[acts], edit, layer)
    return states


def met(edit: Edit, plan: Plan, seen: Float64) -> npt.NDArray[np.bool_]:
    """At which positions the condition of the edit's gate is met."""
    gate = edit.gate
    assert gate is not None
    number = [readout.direction.digest for readout in plan.readouts].index(gate.readout.digest)
    levels = seen[:, number]
    return levels > gate.level if gate.above else levels < gate.level


def first_met(edit: Edit, plan: Plan, seen: Float64) -> int:
    found = np.flatnonzero(met(edit, plan, seen))
    return int(found[0]) if len(found) else END
