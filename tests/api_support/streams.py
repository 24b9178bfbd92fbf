"""Sessions and tracks without a server: what vLLM's stream of one sequence does to them, event by event."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from api_support.fake_engine import decode
from pilothouse.api.plans import Ask
from pilothouse.api.session import Session, Surroundings
from pilothouse.core.messages import Reading
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.records import RequestOutcome
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack, PromptTrack, waves
from pilothouse.probing import Probe

N_PROMPT = 3


class Kept:
    """An `OutcomeSink` that keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[RequestOutcome] = []

    def observe(self, outcome: RequestOutcome) -> None:
        self.outcomes.append(outcome)


def open_session(probes: Sequence[Probe], n_choices: int = 1, **ask: Any) -> tuple[Session, list[ChoiceTrack]]:
    """A session that shows `probes`, and its sequences, of which nothing has been generated."""
    plan = Plan((), tuple(Readout(probe.name, probe.direction) for probe in probes))
    around = Surroundings(Kept(), decode, bos_token_id=None, max_names_in_label=3)
    session = Session(Ask(plan, tuple(probes), reads_given=True, **ask), "/v1/chat/completions", "tiny", around)
    tracks = [ChoiceTrack(N_PROMPT, len(probes)) for _ in range(n_choices)]
    session.add_prompt(PromptTrack(plan, list(range(2, 2 + N_PROMPT)), [], tracks))
    return session, tracks


def generate(track: ChoiceTrack, rows: Float32, finish_reason: str | None = None) -> None:
    """As many further tokens as there are rows [n, readouts]: each is of the position before its token."""
    for row in np.asarray(rows, dtype="<f4"):
        n = len(track.token_ids)
        start = 0 if n == 0 else N_PROMPT + n - 1
        stop = N_PROMPT + n
        track.add(Reading(((start, stop - start, 0),), ((stop - 1, 1),), row.tobytes()))
        track.token_ids.append(7 + n)
    track.finish_reason = finish_reason


def generate_together(tracks: Sequence[ChoiceTrack], rows: Float32) -> None:
    """One further token of each track but its first: rows [tracks, readouts], read in one step of decoding."""
    for track, place in zip(tracks, waves(rows, tracks), strict=True):
        track.add_position(N_PROMPT + len(track.token_ids) - 1, 0, place)
        track.token_ids.append(7 + len(track.token_ids))


def event_of(*choices: dict[str, Any], **more: Any) -> str:
    """An event as vLLM writes it."""
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": list(choices), **more}
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def rewritten(session: Session, event: str) -> str:
    """All parts of `event` as the session sends it on."""
    return "".join(session.rewrite_event(event))


def choice_of(index: int, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """A choice of a chat's chunk, in vLLM's order."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}
