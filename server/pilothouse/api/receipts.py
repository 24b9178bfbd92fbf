"""Receipts: for every edit of a steered request, what was added, where, and to how many tokens."""

import logging
from collections.abc import Sequence
from typing import Any

from pilothouse.core.plans import Edit, PositionRange, segments
from pilothouse.core.tracks import ChoiceTrack

logger = logging.getLogger(__name__)


def receipts(edits: Sequence[Edit], spans: Sequence[tuple[int, int]], track: ChoiceTrack) -> list[dict[str, Any]]:
    """One receipt an edit, in the order of the request; `spans` are the edits' absolute positions."""
    gap = missing_edits(edits, spans, track)
    found = []
    for edit, (start, stop) in zip(edits, spans, strict=True):
        receipt = _describe(edit)
        receipt["tokens_edited"] = tokens_edited(start, stop, track)
        cached = min(stop, track.first_forwarded, track.n_prompt)
        receipt["tokens_from_cache"] = max(cached - start, 0)
        if gap:
            receipt["error"] = f"the engine reported {gap} edited tokens too few"
        found.append(receipt)
    if gap:
        logger.error("The engine edited %d tokens too few in a sequence under edits %s", gap, [e.label for e in edits])
    return found


def tokens_edited(start: int, stop: int, track: ChoiceTrack) -> int:
    """Positions of [start, stop) that were forwarded. The last generated token is never fed back, so never counts,
    although an engine that runs ahead may have forwarded it before it knew."""
    end = track.n_prompt + max(len(track.token_ids) - 1, 0)
    return track.count_forwarded(start, min(stop, end))


def missing_edits(edits: Sequence[Edit], spans: Sequence[tuple[int, int]], track: ChoiceTrack) -> int:
    """How many positions were forwarded under an edit without being reported as edited; 0 when all is well.

    Recomputed positions are reported more than once, so this can miss a fault but never invents one.
    """
    live = [span for edit, span in zip(edits, spans, strict=True) if not edit.is_identity()]
    expected = sum(track.count_forwarded(s.start, s.stop) for s in segments(live))
    return max(expected - track.edited_reported, 0)


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
    return named | {
        "digest": f"sha256:{edit.direction.digest.hex()}",
        "op": edit.op,
        "layers": sorted(edit.coefficients),
        "coefficients": {str(layer): edit.coefficients[layer] for layer in sorted(edit.coefficients)},
        "positions": {"from": positions.start, "to": positions.stop}
        if isinstance(positions, PositionRange)
        else positions,
    }
