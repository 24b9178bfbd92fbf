"""Receipts: for every edit of a steered request, what was done, where, and to how many tokens."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pilothouse.core.edits import Edit, Gate, PositionRange
from pilothouse.core.plans import Plan
from pilothouse.core.tracks import ChoiceTrack

Span = tuple[int, int]


def receipts(plan: Plan, spans: Sequence[Span], track: ChoiceTrack, error: str = "") -> list[dict[str, Any]]:
    """One receipt an edit, in the order of the request; `spans` are the edits' absolute positions.

    error: what the engine did not do, if anything; each receipt says it, since only their sum is known.
    """
    found = []
    for edit, span in zip(plan.edits, spans, strict=True):
        receipt = _describe(edit)
        receipt["tokens_edited"] = tokens_edited(plan, edit, span, track)
        receipt["tokens_from_cache"] = _from_cache(*span, track)
        if edit.gate is not None:
            receipt["gate"] = _describe_gate(plan, edit.gate, span, track)
        if error:
            receipt["error"] = error
        found.append(receipt)
    return found


def tokens_edited(plan: Plan, edit: Edit, span: Span, track: ChoiceTrack) -> int:
    """Positions of `span` that were forwarded, with the edit's gate open if it has one. The last generated token is
    never fed back, so never counts, although an engine that runs ahead may have forwarded it before it knew."""
    start, stop = span[0], min(span[1], _end(track))
    if edit.gate is None:
        return track.count_forwarded(start, stop)
    if edit.gate.stops:
        return 0
    opened = _open(plan, edit.gate, span, track)
    return sum(track.count_forwarded(int(position), int(position) + 1) for position in np.flatnonzero(opened))


def count_open(plan: Plan, edit: Edit, span: Span, track: ChoiceTrack) -> int:
    """At how many positions of `span` the edit's gate was open; 0 for an edit without one."""
    return 0 if edit.gate is None else int(_open(plan, edit.gate, span, track).sum())


def _end(track: ChoiceTrack) -> int:
    return track.n_prompt + max(len(track.token_ids) - 1, 0)


def _open(plan: Plan, gate: Gate, span: Span, track: ChoiceTrack) -> npt.NDArray[np.bool_]:
    """At which of the positions [0, end) of the sequence the edit acts, by the readouts that its gate saw."""
    end = _end(track)
    number = [readout.direction.digest for readout in plan.readouts].index(gate.readout.digest)
    seen = track.scores(0, end)[:, number]
    # As the engine compares: in float32.
    met = seen > np.float32(gate.level) if gate.above else seen < np.float32(gate.level)
    met[:1] = False
    if gate.latched:
        met = np.concatenate([[False], np.logical_or.accumulate(met)[:-1]])[:end]
    positions = np.arange(end)
    return np.asarray(met & (positions >= span[0]) & (positions < span[1]), dtype=np.bool_)


def _from_cache(start: int, stop: int, track: ChoiceTrack) -> int:
    """Prompt positions of [start, stop) that the prefix cache spared the model; after preemption it may reach further
    than before, past positions that were forwarded. When nothing was forwarded nothing is known of the cache either."""
    if track.forwarded.first is None:
        return 0
    end = min(stop, track.n_prompt, max(track.first_forwarded, track.cached))
    return max(end - start, 0) - track.count_forwarded(start, end)


def _describe(edit: Edit) -> dict[str, Any]:
    named: dict[str, Any]
    match edit.source:
        case "vector":
            named = {"vector": edit.label}
        case "sae":
            named = {"sae": edit.label, "feature": edit.feature}
        case "inline":
            named = {"inline": True}
    positions = edit.positions
    named |= {
        "digest": f"sha256:{edit.direction.digest.hex()}",
        "op": edit.op,
        "layers": sorted(edit.coefficients),
        "coefficients": {str(layer): edit.coefficients[layer] for layer in sorted(edit.coefficients)},
        "positions": {"from": positions.start, "to": positions.stop}
        if isinstance(positions, PositionRange)
        else positions,
    }
    if edit.op == "cap":
        for key, end in (("min", 0), ("max", 1)):
            bounds = {str(layer): edit.bounds[layer][end] for layer in sorted(edit.bounds)}
            named[key] = {layer: bound if math.isfinite(bound) else None for layer, bound in bounds.items()}
    if edit.preserve_norm:
        named["preserve_norm"] = True
    return named


def _describe_gate(plan: Plan, gate: Gate, span: Span, track: ChoiceTrack) -> dict[str, Any]:
    """Which gate it was, and the first position at which it was open; None when it never was."""
    opened = np.flatnonzero(_open(plan, gate, span, track))
    return {
        "probe": gate.label,
        "when": "above" if gate.above else "below",
        "scope": gate.scope,
        "action": "stop" if gate.stops else "steer",
        "first_open": int(opened[0]) if len(opened) else None,
    }
