"""Gaps: what a plan asked of the engine, position by position, against what the engine reported to have done."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pilothouse.core.edits import Edit
from pilothouse.core.plans import Plan, segments
from pilothouse.core.records import GapKind
from pilothouse.core.tracks import ChoiceTrack

_CONSEQUENCES: dict[GapKind, str] = {
    "forwarded": "what became of the rest is unknown",
    "edited": "the response was not steered as asked",
    "scored": "the response was not probed as asked",
}


@dataclass(frozen=True)
class Gap:
    """A number of positions to which the engine did not do what it should."""

    kind: GapKind
    positions: int

    @property
    def message(self) -> str:
        """One sentence for the client."""
        tokens = f"{self.positions} token{'s' if self.positions > 1 else ''}"
        did = "reported" if self.kind == "forwarded" else self.kind
        return f"the engine {did} {tokens} too few: {_CONSEQUENCES[self.kind]}"


def find_gaps(plan: Plan, spans: Sequence[tuple[int, int]], track: ChoiceTrack) -> tuple[Gap, ...]:
    """The gaps of one sequence under `plan`, at most one a kind; `spans` are the absolute positions of its edits.

    A sequence that was given up or broke owes nothing. The last generated token is never fed back, so nothing is
    expected of its position.
    """
    if plan.empty or not track.complete:
        return ()
    stop = track.n_prompt + len(track.token_ids) - 1
    first = min(track.first_forwarded, track.n_prompt - 1)
    found: dict[GapKind, int] = {
        "forwarded": _missing_forwards(track, first, stop),
        "edited": missing_edits(plan.edits, spans, track),
        "scored": _missing_scores(plan, track, first, stop),
    }
    return tuple(Gap(kind, positions) for kind, positions in found.items() if positions > 0)


def missing_edits(edits: Sequence[Edit], spans: Sequence[tuple[int, int]], track: ChoiceTrack) -> int:
    """How many positions were forwarded under an edit without being reported as edited; 0 when all is well.

    Recomputed positions are reported more than once, so this can miss a fault but never invents one.
    """
    live = [span for edit, span in zip(edits, spans, strict=True) if not edit.is_identity()]
    expected = sum(track.count_forwarded(s.start, s.stop) for s in segments(live))
    return max(expected - track.edited_reported, 0)


def asked_for(gaps: Iterable[Gap], steered: bool, probed: bool) -> tuple[Gap, ...]:
    """Those gaps that are an error of the request: all but what concerns only probes that the client did not ask for.

    steered, probed: whether the client asked for edits and for probes. Of a position that was not reported nobody knows
    whether it was edited.
    """
    matters: dict[GapKind, bool] = {"forwarded": steered or probed, "edited": steered, "scored": probed}
    return tuple(gap for gap in gaps if matters[gap.kind])


def describe_gaps(gaps: Iterable[Gap]) -> str:
    """One sentence for the client; empty when there is no gap."""
    return "; ".join(gap.message for gap in gaps)


def _missing_forwards(track: ChoiceTrack, first: int, stop: int) -> int:
    """Positions of [first, stop) that were neither forwarded nor, in the prompt, taken from the cache.

    The latter may lie behind `first`: a preempted request can find more of its prompt there than it had forwarded.
    """
    first = max(first, min(track.cached, track.n_prompt - 1))
    kept = track.forwarded.count_absent(track.scored, first, track.n_prompt - 1)
    return stop - first - track.count_forwarded(first, stop) - kept


def _missing_scores(plan: Plan, track: ChoiceTrack, first: int, stop: int) -> int:
    """Positions that should have been read and were not; those before `first` came from the prefix cache."""
    if not plan.readouts:
        return 0
    wanted = track.forwarded
    if plan.prompt_scores:
        # What the cache spares the model, the engine has kept the scores of.
        wanted = wanted.copy()
        wanted.add(0, first)
    return track.scored.count_absent(wanted, 0 if plan.prompt_scores else track.n_prompt - 1, stop)
