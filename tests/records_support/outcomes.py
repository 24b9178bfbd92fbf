"""Finished requests that are random but the same every time."""

import random
from dataclasses import replace
from typing import Any

from pilothouse.core.records import ChoiceOutcome, ProbeOutcome, RequestOutcome
from pilothouse.core.trace import TraceContext

MODELS = ("tiny", "other/model")
ROUTES = ("/v1/chat/completions", "/v1/completions")
STEERING = ("none", "calm", "calm+honest")
PROBES = ("risk", "truthfulness")
VERSION = "sha256:abc"


def outcome(number: int, **changes: Any) -> RequestOutcome:
    """Request `number`: up to two choices, each with up to two probes, some of which did not score."""
    rng = random.Random(number)
    names = rng.sample(PROBES, rng.choice((0, 1, 2, 2)))
    choices = tuple(
        ChoiceOutcome(tuple(probe(rng, name) for name in names), n_generated=rng.randrange(9))
        for _ in range(rng.choice((1, 1, 2)))
    )
    made = RequestOutcome(
        response_id=f"chatcmpl-{number}",
        model_name=rng.choice(MODELS),
        route=rng.choice(ROUTES),
        steering=rng.choice(STEERING),
        steered_by=(),
        created=1_700_000_000.0 + number / 8,
        choices=choices,
        error=rng.choice((None, None, None, "aborted")),
        seconds=rng.random(),
        n_prompt=rng.randrange(100),
        plan_digests=("sha256:123",),
        strengths={"calm": rng.random()},
        trace=TraceContext.of_request(None),
    )
    changed = replace(made, **changes)
    return replace(changed, body=changed.body or tuple(body(i, choice) for i, choice in enumerate(changed.choices)))


def probe(rng: random.Random, name: str) -> ProbeOutcome:
    if rng.random() < 0.1:
        return ProbeOutcome(name, None, None, False, 0, "aborted", 3, VERSION)
    # Few distinct scores: orders by them have ties.
    score = rng.randrange(21) / 20
    return ProbeOutcome(name, score, rng.random(), score > 0.7, 3, None, 3, VERSION, score * 4 - 2, "high")


def scored(number: int, *scores: float, name: str = "risk", version: str = VERSION, **changes: Any) -> RequestOutcome:
    """A request with a choice for each of these scores of one probe, which flags from 0.5 on."""
    choices = tuple(
        ChoiceOutcome((ProbeOutcome(name, score, None, score >= 0.5, 3, version=version, statistic=score * 10),))
        for score in scores
    )
    return outcome(number, choices=choices, **changes)


def body(index: int, choice: ChoiceOutcome) -> dict[str, Any]:
    """What the response said of a choice, as far as the store can tell."""
    probes = {p.probe: {"score": p.score, "flagged": p.flagged, "note": "«naïve»"} for p in choice.probes}
    return {"index": index, "finish_reason": "stop", "probes": probes}


def expected(request: RequestOutcome, **changes: Any) -> dict[str, Any]:
    """The record of a request, by the letter."""
    record = {
        "id": request.response_id,
        "object": "probe.result",
        "created": int(request.created),
        "time": request.created,
        "model": request.model_name,
        "route": request.route,
        "steering": request.steering,
        "flagged": any(p.flagged for choice in request.choices for p in choice.probes),
        "error": request.error,
        "seconds": request.seconds,
        "n_prompt": request.n_prompt,
        "plan_digests": list(request.plan_digests),
        "strengths": request.strengths,
        "trace_id": request.trace.trace_id if request.trace else None,
        "replaced": 0,
        "choices": list(request.body),
        "labels": [],
    }
    return record | changes
