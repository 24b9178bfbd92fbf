"""Receipts: for every edit of a steered request, what was added, where, and to how many tokens."""

from collections.abc import Sequence
from typing import Any

from pilothouse.core.edits import Edit, PositionRange
from pilothouse.core.tracks import ChoiceTrack


def receipts(
    edits: Sequence[Edit], spans: Sequence[tuple[int, int]], track: ChoiceTrack, error: str = ""
) -> list[dict[str, Any]]:
    """One receipt an edit, in the order of the request; `spans` are the edits' absolute positions.

    error: what the engine did not do, if anything; each receipt says it, since only their sum is known.
    """
    found = []
    for edit, (start, stop) in zip(edits, spans, strict=True):
        receipt = _describe(edit)
        receipt["tokens_edited"] = tokens_edited(start, stop, track)
        receipt["tokens_from_cache"] = _from_cache(start, stop, track)
        if error:
            receipt["error"] = error
        found.append(receipt)
    return found


def tokens_edited(start: int, stop: int, track: ChoiceTrack) -> int:
    """Positions of [start, stop) that were forwarded. The last generated token is never fed back, so never counts,
    although an engine that runs ahead may have forwarded it before it knew."""
    end = track.n_prompt + max(len(track.token_ids) - 1, 0)
    return track.count_forwarded(start, min(stop, end))


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
    return named | {
        "digest": f"sha256:{edit.direction.digest.hex()}",
        "op": edit.op,
        "layers": sorted(edit.coefficients),
        "coefficients": {str(layer): edit.coefficients[layer] for layer in sorted(edit.coefficients)},
        "positions": {"from": positions.start, "to": positions.stop}
        if isinstance(positions, PositionRange)
        else positions,
    }
