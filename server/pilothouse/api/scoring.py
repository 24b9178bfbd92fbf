"""From the readouts of one sequence to what clients see of them: logits, scores, statistics, and why one is missing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np

from pilothouse.core.listing import Begun, Listing, TokenTable, number_texts, numbers
from pilothouse.core.records import ABORTED, Activity, ProbeOutcome
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.probing import Probe, ProbeStats
from pilothouse.probing.panel import panel_of, surely_finite

Decode = Callable[[int], str]
"""The text of one token id."""

_MOST_KEPT = 2**16
"""Texts of tokens that are remembered, of some 70 bytes each."""

ADHOC = "adhoc"
"""What metrics call that which nobody configured."""
FAILED = "error"
"""Why nothing was scored in a request that broke."""

ENGINE_GAP = "engine_gap"
"""Why there is no score where the engine should have read and did not."""

NOT_FINITE = "not_finite"
"""Why there is no score where the engine did read: the model's stream overflowed."""


def remembered(decode: Decode) -> Decode:
    """`decode` that asks a tokenizer once for a token: most answers are of the same few thousand."""
    return lru_cache(_MOST_KEPT)(decode)


def number(value: float | None) -> float | None:
    """`value` as JSON can carry it: None for what is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Report:
    """One probe on one finished sequence. logits have one entry a generated token, NaN where unscored.

    prompt_end_score: the risk before anything is generated: a token's score, unless the probe is made for the prompt's
    end; index: of the probe, in `all_scores` [P, n] too, which are made once they are asked for.
    """

    probe: Probe
    index: int
    logits: Float32
    all_scores: Callable[[], Float32]
    stats: ProbeStats
    score: float | None
    flagged: bool
    n_scored: int
    reason: str | None
    prompt_end_score: float | None

    @property
    def scores(self) -> Float32:
        """Each generated token's own score, NaN where unscored."""
        scores: Float32 = self.all_scores()[self.index]
        return scores

    @cached_property
    def level(self) -> str | None:
        """The word for the score."""
        return self.probe.level(self.score)

    def outcome(self) -> ProbeOutcome:
        """For telemetry."""
        return ProbeOutcome(
            probe=ADHOC if self.probe.adhoc else self.probe.name,
            score=self.score,
            prompt_end=self.prompt_end_score,
            flagged=self.flagged,
            n_scored=self.n_scored,
            reason=self.reason,
            n_expected=max(len(self.logits) - 1, 0),
            version=self.probe.version,
            statistic=number(getattr(self.stats, self.probe.aggregate)),
            level=self.level,
            activity=self._activity() if self.probe.watches_feature else None,
        )

    def _activity(self) -> Activity:
        scores = self.scores
        known = scores[np.isfinite(scores)]
        return Activity(int((known > 0).sum()), float(known.sum()))


class Rows:
    """Logits and scores [n, P] of n sequences' tokens, one of each, all finite."""

    def __init__(self, logits: Float32, scores: Float32) -> None:
        self.logits = logits
        self.scores = scores

    def texts(self, row: int) -> list[str]:
        """The `number_texts` of one of the tokens."""
        width = 2 * self.logits.shape[1]
        return self._texts[width * row : width * (row + 1)]

    @cached_property
    def _texts(self) -> list[str]:
        return number_texts(self.logits, self.scores)


class ChoiceScores:
    """The readouts of one sequence under its P probes. Readout k of the track belongs to probe k."""

    def __init__(self, track: ChoiceTrack, prompt_ids: Sequence[int], probes: Sequence[Probe]) -> None:
        self.track = track
        self.probes = probes
        self.names = [probe.name for probe in probes]
        self._panel = panel_of(probes)
        track.reader = self._panel
        self._prompt_ids = prompt_ids

    def logits(self, start: int, stop: int) -> Float32:
        """The logits [stop - start, P] at absolute positions [start, stop); NaN where none is known."""
        # Behind those of the probes there may be readouts that only gates look at.
        return self._panel.logits(self.track.scores(start, stop)[:, : len(self.probes)])

    def generated(self, start: int, stop: int) -> Float32:
        """As `logits`, counted in generated tokens; the last token that there is so far is NaN whatever ran."""
        first = self.track.n_prompt
        found = self.logits(first + start, first + stop)
        last = len(self.track.token_ids) - 1
        if last < stop:
            found[max(last - start, 0) :] = np.nan
        return found

    def token_scores(self, logits: Float32) -> Float32:
        """Each probe's score of each token [n, P], of logits [n, P]; NaN where the logit is."""
        return self._panel.token_scores(logits)

    def latest(self, start: int) -> tuple[Rows, int] | None:
        """Of generated token number `start`, if it is the one that was read last, what its readouts mean, among those
        of other sequences, and its row there; None where that is to be found out by itself."""
        latest = self.track.latest
        if latest is None or latest.position != self.track.n_prompt + start:
            return None
        rows = latest.wave.made(self._rows)
        return None if rows is None else (rows, latest.row)

    def _rows(self, raw: Float32) -> Rows | None:
        logits = self._panel.logits(raw[:, : len(self.probes)])
        return Rows(logits, self.token_scores(logits)) if surely_finite(logits) else None

    def entries(self, start: int, stop: int) -> list[dict[str, Any] | None]:
        """For each of the generated tokens its logit and score by probe, None where no probe has one."""
        logits = self.generated(start, stop)
        found = []
        for row, scores in zip(logits, self.token_scores(logits), strict=True):
            known = zip(self.names, numbers(row), numbers(scores), strict=True)
            entry = {name: {"logit": logit, "score": score} for name, logit, score in known if logit is not None}
            found.append(entry or None)
        return found

    def reports(self, error: str | None = None, gap: bool = False) -> list[Report]:
        """What each probe says of the sequence as it stands.

        error: why the request failed, if it did; gap: the engine left something out, so that no score can be given.
        """
        if not self.probes:
            return []
        panel, n = self._panel, self.track.n_prompt
        logits, ends = self.generated(0, len(self.track.token_ids)), self.logits(n - 1, n)
        stats = panel.stats(logits, list(map(number, ends[0].tolist())))
        wholes = [None if gap else number(score) for score in panel.scores(stats)]
        scores = cache(lambda: np.ascontiguousarray(panel.token_scores(logits).T))
        columns = zip(
            self.probes,
            np.ascontiguousarray(logits.T),
            stats,
            wholes,
            panel.flagged(wholes),
            np.isfinite(logits).sum(axis=0).tolist(),
            map(number, panel.token_scores(ends)[0].tolist()),
            strict=True,
        )
        found = []
        for k, (probe, row, its_stats, score, flagged, n_scored, end) in enumerate(columns):
            reason = None
            if score is None:
                reason = ENGINE_GAP if gap else self._why_unscored(probe, error)
            end = score if probe.aggregate == "prompt_end" else end
            found.append(Report(probe, k, row, scores, its_stats, score, flagged, n_scored, reason, end))
        return found

    def _why_unscored(self, probe: Probe, error: str | None) -> str:
        if not self.track.complete:
            failed = self.track.finish_reason == "error" or error not in (None, ABORTED)
            return FAILED if failed else ABORTED
        match len(self.track.token_ids):
            case 0:
                return "no_generated_token"
            case 1 if probe.aggregate != "prompt_end":
                return "one_generated_token"
        return NOT_FINITE

    def generated_entries(
        self, reports: Sequence[Report], decode: Decode, begun: Callable[[Float32], Begun | None] = lambda logits: None
    ) -> list[Listing]:
        """`tokens` of each report: one entry for each generated token, the last one null by contract. begun: what has
        been made of the first tokens already, given the logits [n, P]."""
        ids = list(self.track.token_ids)

        def why(j: int) -> str | None:
            return self._why_missing(self.track.n_prompt + j) if j < len(ids) - 1 else None

        logits = np.array([report.logits for report in reports])
        words = list(map(decode, ids))
        return TokenTable(words, ids, logits, reports[0].all_scores(), why, begun(logits.T)).listings()

    def prompt_entries(self, decode: Decode, bos: int | None) -> Mapping[str, Listing]:
        """`prompt_tokens` of each probe by its name. The beginning-of-sequence token is never scored."""
        ids = self._prompt_ids
        logits = self.logits(0, self.track.n_prompt)
        has_bos = bos is not None and ids[0] == bos
        if has_bos:
            logits[0] = np.nan

        def why(p: int) -> str:
            return "bos" if has_bos and p == 0 else self._why_missing(p)

        table = TokenTable(list(map(decode, ids)), ids, logits.T, self.token_scores(logits).T, why)
        return dict(zip(self.names, table.listings(), strict=True))

    def _why_missing(self, position: int) -> str:
        if self.track.scored.count(position, position + 1):
            return NOT_FINITE
        if self.track.complete or self.track.count_forwarded(position, position + 1):
            return ENGINE_GAP
        return "not_forwarded"
