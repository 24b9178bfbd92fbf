"""What each kind of edit does to the stream, written down a second time, as its paper says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pilothouse.core.edits import Edit, Gate
from pilothouse.core.plans import END, Plan, edit_spans

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


def threshold_margin(states: Float64, edit: Edit, layer: int) -> float:
    """How near a position of `states` [n, d_model] is to where the edit's feature begins to fire, in spreads of what
    the feature is read as: there, what float32 loses decides."""
    if edit.reader is None or not len(states):
        return np.inf
    row = edit.reader.direction.layers[layer].astype(np.float64)
    distances = np.abs(states @ row + edit.reader.bias - edit.reader.threshold)
    return float(distances.min() / (np.linalg.norm(states, axis=1).mean() * np.linalg.norm(row) / np.sqrt(len(row))))


def gate_margin(plan: Plan, seen: Float64) -> float:
    """The same for the levels of the plan's gates, in spreads of their readouts `seen` [n_tokens, readouts]."""
    margins = [np.inf]
    for edit in plan.edits:
        if edit.gate is not None:
            levels = seen[1:, gate_number(edit.gate, plan)]
            if len(levels):
                margins.append(np.abs(levels - edit.gate.level).min() / (levels.std() or 1.0))
    return float(min(margins))


def visit(
    states: Float64,
    layer: int,
    plan: Plan,
    spans: Sequence[tuple[int, int]],
    seen: Float64,
    opened: Sequence[int],
    margins: list[float],
) -> Float64:
    """`states` [n_tokens, d_model] after all edits of `plan` at `layer`, in order.

    seen: [n_tokens, readouts] as read so far; opened: by edit, the first position at which a latched gate's condition
    was met; margins: takes `threshold_margin` of each edit.
    """
    positions = np.arange(len(states))
    states = states.copy()
    for edit, (start, stop), first in zip(plan.edits, spans, opened, strict=True):
        if layer not in edit.coefficients or (edit.gate is not None and edit.gate.stops):
            continue
        acts = (positions >= start) & (positions < stop)
        if edit.gate is not None:
            acts &= (positions > first) if edit.gate.latched else met(edit, plan, seen)
        margins.append(threshold_margin(states[acts], edit, layer))
        states[acts] = changed(states[acts], edit, layer)
    return states


def gate_number(gate: Gate, plan: Plan) -> int:
    """Which of the plan's readouts the gate looks at."""
    return [readout.direction.digest for readout in plan.readouts].index(gate.readout.digest)


def met(edit: Edit, plan: Plan, seen: Float64) -> npt.NDArray[np.bool_]:
    """At which positions the condition of the edit's gate is met."""
    assert edit.gate is not None
    levels = seen[:, gate_number(edit.gate, plan)]
    return levels > edit.gate.level if edit.gate.above else levels < edit.gate.level


def first_met(edit: Edit, plan: Plan, seen: Float64) -> int:
    found = np.flatnonzero(met(edit, plan, seen)[1:])
    return 1 + int(found[0]) if len(found) else END


def stop_after(plan: Plan, n_prompt: int, seen: Float64) -> tuple[int, str]:
    """How many tokens a sequence has when a gate that stops ends it, and which probe's: that of the first position
    where one is met, of several there the first of the plan. `END` and nothing where none is met.

    seen: [n_tokens, readouts]; a gate sees the prompt before its last token only when prompt scores are read.
    """
    first, label = END, ""
    for edit, (start, stop) in zip(plan.edits, edit_spans(plan.edits, n_prompt), strict=True):
        if edit.gate is None or not edit.gate.stops:
            continue
        start = max(start, 0 if plan.prompt_scores else n_prompt - 1)
        found = np.flatnonzero(met(edit, plan, seen)[start : max(start, stop)])
        if len(found) and start + int(found[0]) < first:
            first, label = start + int(found[0]), edit.gate.label
    return (max(first - (n_prompt - 1), 0) + 1, label) if label else (END, "")


def acting(edit: Edit, plan: Plan, n_prompt: int, seen: Float64) -> npt.NDArray[np.bool_]:
    """At which positions the edit acts, [n_tokens], its gate open."""
    index = plan.edits.index(edit)
    start, stop = edit_spans(plan.edits, n_prompt)[index]
    positions = np.arange(len(seen))
    acts = (positions >= start) & (positions < stop)
    if edit.gate is None:
        return acts
    return acts & (positions > first_met(edit, plan, seen) if edit.gate.latched else met(edit, plan, seen))
