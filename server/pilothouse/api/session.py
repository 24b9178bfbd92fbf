"""One request from validation to the last byte of its response: what the engine's handlers ask of the API room."""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pilothouse.api.described import describe
from pilothouse.api.events import DONE, ERROR, goes_on, has_logprobs, lone_choice, read, tells_finish, with_key, written
from pilothouse.api.feed import Allowance, ScoreFeed
from pilothouse.api.names import PROBES, STEERING
from pilothouse.api.plans import Ask
from pilothouse.api.receipts import count_open, receipts, tokens_edited
from pilothouse.api.scoring import ADHOC, FAILED, ChoiceScores, Decode, Report
from pilothouse.core.edits import Edit
from pilothouse.core.errors import EngineGap
from pilothouse.core.gaps import Gap, asked_for, describe_gaps, find_gaps
from pilothouse.core.listing import Listing
from pilothouse.core.messages import StepCost
from pilothouse.core.record_body import REASONS, without_words
from pilothouse.core.records import (
    NO_TOKEN_IDS,
    REFUSED,
    ChoiceOutcome,
    GateOutcome,
    OutcomeSink,
    ProbeOutcome,
    RequestOutcome,
)
from pilothouse.core.trace import TraceContext, session_trace
from pilothouse.core.tracks import PromptTrack

logger = logging.getLogger(__name__)

NO_STEERING = "none"

ReadText = Callable[[Sequence[int]], str]
"""The text of token ids."""

SCORES = "probe_scores"
"""The key of what is said of tokens while they are streamed."""


@dataclass(frozen=True)
class Surroundings:
    """What every session of a server shares. model_name: what metrics and records call the model, whichever of its
    names a request used; read_text: where records keep prompts and completions; lost: told of an outcome that could not
    be made; spent: told what steps of a model's engine cost; allowance: what may be kept of what is streamed."""

    sink: OutcomeSink
    decode: Decode
    bos_token_id: int | None
    max_names_in_label: int
    model_name: str | None = None
    read_text: ReadText | None = None
    lost: Callable[[], None] = lambda: None
    spent: Callable[[str, StepCost], None] = lambda model_name, cost: None
    allowance: Allowance = field(default_factory=Allowance)


@dataclass
class _Choice:
    """One generated sequence. feed: what of its scores has been streamed; gaps: what the engine left out, once the
    sequence has ended; extras: the finished keys, once they were asked for.
    """

    prompt: PromptTrack
    scores: ChoiceScores
    feed: ScoreFeed
    gaps: tuple[Gap, ...] | None = None
    reports: list[Report] | None = None
    extras: dict[str, Any] | None = None


@dataclass
class Session:
    """A `RequestSession`."""

    ask: Ask
    route: str
    model_name: str
    around: Surroundings
    created: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)
    trace: TraceContext | None = field(default_factory=session_trace)
    response_id: str = ""
    _prompts: list[PromptTrack] = field(default_factory=list)
    _choices: list[_Choice] = field(default_factory=list)
    _closed: bool = False
    _failed: bool = False

    def __post_init__(self) -> None:
        self.plan = self.ask.plan
        self._shows = self.ask.steering_given or bool(self.ask.probes)
        self._streams_scores = self.ask.tokens and bool(self.ask.probes)

    @property
    def asked(self) -> str | None:
        """The field that asks for edits or, failing those, readings."""
        if self.plan.edits:
            return STEERING
        return PROBES if self.ask.reads_given and not self.plan.empty else None

    def shows_tokens(self, logprobs: bool) -> bool:
        """Whether scores of tokens are shown while the answer is streamed; logprobs: it has log-probabilities."""
        return self._shows and bool(self.ask.probes) and (self.ask.tokens or logprobs)

    def add_prompt(self, track: PromptTrack) -> None:
        """Take the prompt's sequences in; their numbers follow those of earlier prompts."""
        self._prompts.append(track)
        for choice in track.choices:
            scores = ChoiceScores(choice, track.prompt_token_ids, self.ask.probes)
            self._choices.append(_Choice(track, scores, ScoreFeed(scores, self.around.decode, self.around.allowance)))

    def set_response_id(self, response_id: str) -> None:
        """Remember under which id the record is to be found."""
        self.response_id = response_id

    def decorate(self, index: int) -> dict[str, Any]:
        """`steering` and `probes` of finished choice `index`; EngineGap when what the client asked for was not done."""
        if not self._shows:
            return {}
        return _as_objects(self._faultless(self._choices[index]))

    def token_scores(self, index: int) -> list[dict[str, Any] | None]:
        """For each generated token so far its logit and score by probe, None where no probe has one."""
        if not (self._shows and self.ask.probes):
            return []
        choice = self._choices[index]
        return choice.scores.entries(0, len(choice.scores.track.token_ids))

    def new_scores(self, index: int, finished: bool) -> dict[str, Any]:
        """Scores of tokens that were there at the last call; all that are left when the choice has finished."""
        if not self._streams_scores:
            return {}
        feed = self._choices[index].feed
        return feed.named(feed.take(finished))

    def rewrite_event(self, event: str) -> Iterable[str]:
        """`event` with what is known by now, in parts; alone and the same string where there is nothing to add.
        EngineGap as `decorate`."""
        if self._shows and self._streams_scores and (index := lone_choice(event)) is not None:
            feed = self._choices[index].feed
            block = feed.take(finished=False)
            return (event if block is None else with_key(event, SCORES, feed.text(block)),)
        if event.startswith(DONE):
            # The record must be there before the client can know that the response has ended.
            if all(choice.scores.track.finish_reason is not None for choice in self._choices):
                self.close()
            return (event,)
        if event.startswith(ERROR):
            # vLLM ends such a stream as it ends any other, so nobody else will say that it failed.
            self._failed = True
        if not self._shows or not tells_finish(event):
            return (event,)
        logprobs = bool(self.ask.probes) and has_logprobs(event)
        if not logprobs and not self._streams_scores and goes_on(event):
            return (event,)
        chunk = read(event)
        changed = False
        for shown in chunk.get("choices") or ():
            changed |= self._fill(shown)
        return written(chunk) if changed else (event,)

    def close(self, error: str | None = None) -> None:
        """Hand the outcome to the sinks. Later calls change nothing."""
        if self._closed:
            return
        self._closed = True
        self._shows &= error != NO_TOKEN_IDS
        if self.plan.empty or error == REFUSED or not (self._choices or error == NO_TOKEN_IDS):
            return
        try:
            fault = next(filter(None, map(self._fault, self._choices)), None)
            self.around.sink.observe(self._outcome(error or fault or (FAILED if self._failed else None)))
        except Exception:
            self.around.lost()
            logger.exception("The outcome of request %s could not be recorded", self.response_id)
        for choice in self._choices:
            choice.feed.give_up()

    def _fill(self, shown: dict[str, Any]) -> bool:
        """Put what is new into one choice of a chunk; True when there was something."""
        choice = self._choices[shown["index"]]
        finished = shown.get("finish_reason") is not None
        before = len(shown)
        changed = self._fill_logprobs(choice, shown.get("logprobs"))
        # The first event of a chat announces the role only; its token comes with the next.
        announces = "role" not in (shown.get("delta") or {})
        if self._streams_scores and (block := choice.feed.take(finished, announces)) is not None:
            shown[SCORES] = choice.feed.named(block)
        if finished and self._shows:
            shown.update(self._faultless(choice))
        return changed or len(shown) > before

    def _fill_logprobs(self, choice: _Choice, logprobs: Any) -> bool:
        content = logprobs.get("content") if isinstance(logprobs, dict) and self.ask.probes else None
        if not content:
            return False
        changed = False
        for entry, scores in zip(content, choice.feed.pass_on(len(content)), strict=True):
            if scores is not None:
                entry[SCORES] = scores
                changed = True
        return changed

    def _gaps(self, choice: _Choice) -> tuple[Gap, ...]:
        """What the engine left out of a sequence that has ended; nothing is known before that."""
        if choice.gaps is not None:
            return choice.gaps
        track = choice.scores.track
        gaps = find_gaps(self.plan, choice.prompt.spans, track)
        if track.finish_reason is not None:
            choice.gaps = gaps
        if gaps:
            logger.error("Response %s (%s): %s", self.response_id or "without an id", self.route, describe_gaps(gaps))
        return gaps

    def _fault(self, choice: _Choice) -> str:
        """What the engine left out of what the client asked for; empty when all is there."""
        return describe_gaps(asked_for(self._gaps(choice), bool(self.plan.edits), self.ask.reads_given))

    def _faultless(self, choice: _Choice) -> dict[str, Any]:
        """What a client is told of a sequence that has ended, with listings in it; EngineGap as `decorate`."""
        if fault := self._fault(choice):
            raise EngineGap(fault)
        return self._finished(choice)

    def _finished(self, choice: _Choice) -> dict[str, Any]:
        """What clients are told and the record keeps, but for the words in reasons; made once."""
        if choice.extras is None:
            choice.extras = self._extras(choice)
        return choice.extras

    def _extras(self, choice: _Choice) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.ask.steering_given:
            error = describe_gaps(gap for gap in self._gaps(choice) if gap.kind != "scored")
            extras[STEERING] = receipts(self.plan, choice.prompt.spans, choice.scores.track, error)
        if self.ask.probes:
            extras[PROBES] = self._probes(choice)
        return extras

    def _reports(self, choice: _Choice, error: str | None = None) -> list[Report]:
        if choice.reports is None:
            choice.reports = choice.scores.reports(error, bool(self._gaps(choice)))
        return choice.reports

    def _probes(self, choice: _Choice) -> dict[str, Any]:
        reports = self._reports(choice)
        ids, decode = choice.scores.track.token_ids, self.around.decode
        described = describe(reports, lambda j: decode(ids[j]))
        shown = {report.probe.name: entry for report, entry in zip(reports, described, strict=True)}
        if self.ask.tokens:
            listings = choice.scores.generated_entries(reports, decode, choice.feed.give_up)
            for entry, tokens in zip(shown.values(), listings, strict=True):
                entry["tokens"] = tokens
        if self.ask.prompt:
            for name, entries in choice.scores.prompt_entries(decode, self.around.bos_token_id).items():
                shown[name]["prompt_tokens"] = entries
        return shown

    def _outcome(self, error: str | None) -> RequestOutcome:
        names = tuple(dict.fromkeys(edit_name(edit) for edit in self.plan.edits))
        return RequestOutcome(
            response_id=self.response_id or self._own_id(),
            model_name=self.model_name,
            route=self.route,
            steering=steering_label(names, self.around.max_names_in_label),
            steered_by=names,
            created=self.created,
            choices=self._choice_outcomes(error),
            body=tuple(self._record(i, choice) for i, choice in enumerate(self._choices)),
            error=error,
            seconds=time.perf_counter() - self.began,
            n_prompt=sum(len(prompt.prompt_token_ids) for prompt in self._prompts),
            plan_digests=tuple(f"sha256:{edit.digest.hex()}" for edit in self.plan.edits),
            strengths=self._strengths(),
            trace=self.trace,
            text=None if self.around.read_text is None else self._text(self.around.read_text),
        )

    def _own_id(self) -> str:
        """An id for the record of a response that has none, or was never made."""
        return f"request-{secrets.token_hex(8) if self.trace is None else self.trace.span_id}"

    def _strengths(self) -> dict[str, float]:
        """By name, the hardest push of an edit, in lengths of the stream; edits that only take away have none."""
        found: dict[str, float] = {}
        for edit, push in zip(self.plan.edits, self.ask.pushes, strict=True):
            if push:
                found[edit_name(edit)] = max(push, found.get(edit_name(edit), 0.0))
        return found

    def _text(self, read: ReadText) -> dict[str, list[str]] | None:
        """Prompts and completions; None where a tokenizer fails, for the rest of the record does not need it."""
        try:
            return {
                "prompts": [read(prompt.prompt_token_ids) for prompt in self._prompts],
                "completions": [read(choice.scores.track.token_ids) for choice in self._choices],
            }
        except Exception:
            logger.exception("The texts of response %s could not be read", self.response_id)
            return None

    def _choice_outcomes(self, error: str | None) -> tuple[ChoiceOutcome, ...]:
        if error == NO_TOKEN_IDS and not self._choices:
            unscored = (ProbeOutcome(probe.name, None, None, False, 0, error) for probe in self.ask.probes)
            return (ChoiceOutcome(tuple(unscored)),)
        return tuple(self._choice_outcome(choice, error) for choice in self._choices)

    def _choice_outcome(self, choice: _Choice, error: str | None) -> ChoiceOutcome:
        edited: dict[str, int] = {}
        for edit, span in zip(self.plan.edits, choice.prompt.spans, strict=True):
            name = edit_name(edit)
            edited[name] = edited.get(name, 0) + tokens_edited(self.plan, edit, span, choice.scores.track)
        probes = tuple(report.outcome() for report in self._reports(choice, error))
        gaps = tuple(gap.kind for gap in self._gaps(choice))
        return ChoiceOutcome(probes, edited, gaps, self._gates(choice), len(choice.scores.track.token_ids))

    def _gates(self, choice: _Choice) -> tuple[GateOutcome, ...]:
        found = []
        for edit, span in zip(self.plan.edits, choice.prompt.spans, strict=True):
            if edit.gate is not None and (n_open := count_open(self.plan, edit, span, choice.scores.track)):
                action: Literal["steer", "stop"] = "stop" if edit.gate.stops else "steer"
                found.append(GateOutcome(edit_name(edit), edit.gate.label, action, n_open))
        return tuple(found)

    def _record(self, index: int, choice: _Choice) -> dict[str, Any]:
        finished = self._finished(choice)
        if PROBES in finished and not self.ask.tokens:
            finished = {**finished, PROBES: without_words(finished[PROBES], REASONS)}
        return {"index": index, "finish_reason": choice.scores.track.finish_reason} | finished


def _as_objects(extras: dict[str, Any]) -> dict[str, Any]:
    """`extras` with lists in the place of listings, which only our own JSON knows."""
    if PROBES not in extras:
        return extras
    shown = {
        name: {key: list(value) if type(value) is Listing else value for key, value in entry.items()}
        for name, entry in extras[PROBES].items()
    }
    return {**extras, PROBES: shown}


def edit_name(edit: Edit) -> str:
    """What an edit is called in metrics: its configured name, or `adhoc`."""
    return ADHOC if edit.source == "inline" else edit.label


def steering_label(names: tuple[str, ...], max_names: int) -> str:
    """The value of the metrics' `steering` label for a request steered by `names`."""
    if not names:
        return NO_STEERING
    return ADHOC if ADHOC in names or len(names) > max_names else "+".join(sorted(names))
