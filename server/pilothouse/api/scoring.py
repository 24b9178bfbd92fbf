"""From the readouts of one sequence to what clients see of them: logits, scores, statistics, and why one is missing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pilothouse.core.records import ABORTED, Activity, ProbeOutcome
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.probing import Probe, ProbeStats
from pilothouse.probing.words import past, telling

Decode = Callable[[int], str]
"""The text of one token id."""

ADHOC = "adhoc"
"""What metrics call that which nobody configured."""
FAILED = "error"
"""Why nothing was scored in a request that broke."""

ENGINE_GAP = "engine_gap"
"""Why there is no score where the engine should have read and did not."""

NOT_FINITE = "not_finite"
"""Why there is no score where the engine did read: the model's stream overflowed."""

STAT_NAMES = (
    "last",
    "mean",
    "min",
    "max",
    "worst_ema",
    "worst_rolling",
    "fraction_flagged",
    "first_flagged",
    "prompt_end",
)


def number(value: float | None) -> float | None:
    """`value` as JSON can carry it: None for what is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def numbers(values: Float32) -> list[float | None]:
    """Every entry as `number`."""
    return [x if math.isfinite(x) else None for x in values.tolist()]


@dataclass(frozen=True)
class Report:
    """One probe on one finished sequence. logits and scores have one entry a generated token, NaN where unscored."""

    probe: Probe
    logits: Float32
    scores: Float32
    stats: ProbeStats
    score: float | None
    flagged: bool
    n_scored: int
    reason: str | None

    @property
    def prompt_end_score(self) -> float | None:
        """The risk before anything is generated: a token's score, unless the probe is made for the prompt's end."""
        if self.probe.aggregate == "prompt_end":
            return self.score
        logit = number(self.stats.prompt_end)
        if logit is None:
            return None
        return number(float(token_scores(self.probe, np.array([logit], dtype=np.float32))[0]))

    @property
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
        known = self.scores[np.isfinite(self.scores)]
        return Activity(int((known > 0).sum()), float(known.sum()))


class ChoiceScores:
    """The readouts of one sequence under its probes. Readout k of the track belongs to probe k."""

    def __init__(self, track: ChoiceTrack, prompt_ids: Sequence[int], probes: Sequence[Probe]) -> None:
        self.track = track
        self.probes = probes
        self._prompt_ids = prompt_ids

    def logits(self, start: int, stop: int) -> list[Float32]:
        """For each probe, the logits at absolute positions [start, stop); NaN where none is known."""
        raw = self.track.scores(start, stop)
        found = []
        for k, probe in enumerate(self.probes):
            logits = np.asarray(probe.logits(raw[:, k]), dtype=np.float32)
            found.append(np.where(np.isfinite(logits), logits, np.float32(np.nan)))
        return found

    def generated(self, start: int, stop: int) -> list[Float32]:
        """As `logits`, counted in generated tokens; the last token that there is so far is NaN whatever ran."""
        first = self.track.n_prompt
        found = self.logits(first + start, first + stop)
        last = len(self.track.token_ids) - 1
        for logits in found:
            logits[max(last - start, 0) :] = np.nan
        return found

    def reports(self, error: str | None = None, gap: bool = False) -> list[Report]:
        """What each probe says of the sequence as it stands.

        error: why the request failed, if it did; gap: the engine left something out, so that no score can be given.
        """
        n = self.track.n_prompt
        prompt_ends = self.logits(n - 1, n)
        per_probe = zip(self.probes, self.generated(0, len(self.track.token_ids)), prompt_ends, strict=True)
        found = []
        for probe, logits, end in per_probe:
            stats = probe.stats(logits, number(float(end[0])))
            score = None if gap else number(probe.score(stats))
            reason = None
            if score is None:
                reason = ENGINE_GAP if gap else self._why_unscored(probe, error)
            found.append(_report(probe, logits, stats, score, reason))
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

    def generated_entries(self, report: Report, decode: Decode) -> list[dict[str, Any]]:
        """`tokens`: one entry for each generated token, the last one null by contract."""
        ids = self.track.token_ids
        entries = []
        for j, (logit, score) in enumerate(zip(numbers(report.logits), numbers(report.scores), strict=True)):
            entry: dict[str, Any] = {"token": decode(ids[j]), "token_id": ids[j], "logit": logit, "score": score}
            if logit is None and j < len(ids) - 1:
                entry["reason"] = self._why_missing(self.track.n_prompt + j)
            entries.append(entry)
        return entries

    def prompt_entries(self, decode: Decode, bos: int | None) -> Mapping[str, list[dict[str, Any]]]:
        """`prompt_tokens` of each probe by its name. The beginning-of-sequence token is never scored."""
        found = {}
        for probe, logits in zip(self.probes, self.logits(0, self.track.n_prompt), strict=True):
            has_bos = bos is not None and self._prompt_ids[0] == bos
            if has_bos:
                logits[0] = np.nan
            scores = token_scores(probe, logits)
            entries = []
            for p, (logit, score) in enumerate(zip(numbers(logits), numbers(scores), strict=True)):
                token = self._prompt_ids[p]
                entry: dict[str, Any] = {"token": decode(token), "token_id": token, "logit": logit, "score": score}
                if logit is None:
                    entry["reason"] = "bos" if has_bos and p == 0 else self._why_missing(p)
                entries.append(entry)
            found[probe.name] = entries
        return found

    def _why_missing(self, position: int) -> str:
        if self.track.scored.count(position, position + 1):
            return NOT_FINITE
        if self.track.complete or self.track.count_forwarded(position, position + 1):
            return ENGINE_GAP
        return "not_forwarded"


def _report(probe: Probe, logits: Float32, stats: ProbeStats, score: float | None, reason: str | None) -> Report:
    return Report(
        probe=probe,
        logits=logits,
        scores=token_scores(probe, logits),
        stats=stats,
        score=score,
        flagged=score is not None and probe.flagged(score),
        n_scored=int(np.isfinite(logits).sum()),
        reason=reason,
    )


def token_scores(probe: Probe, logits: Float32) -> Float32:
    """The probe's score of each token; NaN where the logit is."""
    scores = np.full_like(logits, np.nan)
    known = np.isfinite(logits)
    scores[known] = probe.token_scores(logits[known])
    return scores


def describe(report: Report, token: Decode) -> dict[str, Any]:
    """The entry of one probe in a response, token lists apart; `token` is the text of a generated token, by index."""
    probe = report.probe
    shown: dict[str, Any] = {
        "score": report.score,
        "level": report.level,
        "label": probe.label,
        "alarm": probe.alarm,
        "threshold": probe.threshold,
        "flagged": report.flagged,
        "reasons": _reasons(report, token),
        "aggregate": probe.aggregate,
        "version": probe.version,
        "stats": {name: _stat(getattr(report.stats, name)) for name in STAT_NAMES},
        "n_scored": report.n_scored,
    }
    if report.reason is not None:
        shown["reason"] = report.reason
    return shown


def _reasons(report: Report, token: Decode) -> list[dict[str, Any]]:
    """Why a choice was flagged; empty when it was not."""
    probe = report.probe
    if not report.flagged or report.score is None:
        return []
    if probe.aggregate == "prompt_end":
        return [{"prompt_end": True, "score": report.score, "past": past(report.score, probe.alarm, probe.threshold)}]
    found = []
    for j in telling(report.scores, report.logits, probe.aggregate, probe.alarm, probe.threshold):
        score = float(report.scores[j])
        beyond = past(score, probe.alarm, probe.threshold)
        found.append({"token": token(j), "index": j, "score": score, "past": beyond})
    return found


def _stat(value: float | int | None) -> float | int | None:
    """Indices stay whole numbers."""
    return value if isinstance(value, int) else number(value)
