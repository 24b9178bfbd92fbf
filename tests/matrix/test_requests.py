"""Kinds of requests: each plain, steered, probed and both, streamed and not, in one batch with traffic of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_support.harness import Reference
from matrix_support import requests
from matrix_support.columns import Columns
from matrix_support.crowd import PLANS, Crowd, gather
from matrix_support.expected import (
    LEAST_EFFECT,
    Oracle,
    check_logprobs,
    check_readouts,
    check_receipts,
    delivered,
    effect,
)
from matrix_support.kinds import CHAT, COMPLETIONS, KINDS
from matrix_support.requests import COMPLETION, OTHERS, PROBES, STEERING, Kind, Sent, alone, ask, counters, send
from serve_support.server import Server

pytestmark = pytest.mark.engine

SLOW = {
    "structured output (regex)",
    "stop token ids",
    "context limit",
    "truncated prompt",
    "several prompts",
    "seeded sampling",
    "stream interval",
}
"""Kinds that would take the default tier too long, and are near others that it has."""
COLUMNS = ("readouts", "log-probabilities", "receipts", "unsteered", "no leaks")


@pytest.fixture(scope="module")
def oracle(server: Server, reference: Reference) -> Oracle:
    return Oracle(server, reference)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in KINDS]
)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def sent(server: Server, kind: str) -> Sent:
    return send(server, KINDS[kind])


class TestKinds(Columns):
    """Every column of the kinds."""


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.cell("requests", "suffix", "{column}")
def test_a_suffix_is_not_for_this_model(server: Server, column: str) -> None:
    answer = server.post(COMPLETIONS, {**COMPLETION, "suffix": " in France."})
    assert answer.status_code == 400, answer.text
    pytest.skip(answer.json()["error"]["message"])


@pytest.fixture(scope="module")
def crowd(server: Server) -> Crowd:
    return gather(server, 256)


@pytest.mark.slow
class TestCrowd:
    """256 streams at once: half steered by one of eight plans, half plain; half of each read."""

    @pytest.mark.cell("requests", "256 concurrent streams", "readouts")
    def test_readouts_equal_the_reference(self, oracle: Oracle, crowd: Crowd) -> None:
        read = [answer for answer in crowd.answers if answer.body["probes"]]
        assert len(read) == 128
        assert sum(check_readouts(oracle, answer) for answer in read) == 128 * 7 * len(PROBES)

    @pytest.mark.cell("requests", "256 concurrent streams", "log-probabilities")
    def test_log_probabilities_equal_the_reference(self, oracle: Oracle, crowd: Crowd) -> None:
        steered = [answer for answer in crowd.answers if answer.steering]
        assert len(steered) == 128
        for answer in steered:
            check_logprobs(oracle, answer)
        for steering in PLANS:
            moved = [effect(oracle, answer) for answer in steered if answer.steering == steering]
            assert len(moved) == 128 / len(PLANS)
            assert max(moved) > LEAST_EFFECT

    @pytest.mark.cell("requests", "256 concurrent streams", "receipts")
    def test_receipts_count(self, crowd: Crowd) -> None:
        for answer in crowd.answers:
            check_receipts(answer)

    @pytest.mark.cell("requests", "256 concurrent streams", "unsteered")
    def test_unsteered_traffic_is_untouched(self, oracle: Oracle, crowd: Crowd) -> None:
        for answer in crowd.answers:
            if not answer.steering:
                assert not any("steering" in choice.shown for choice in answer.choices)
                check_logprobs(oracle, answer)

    @pytest.mark.cell("requests", "256 concurrent streams", "no leaks")
    def test_nothing_is_left_behind(self, crowd: Crowd) -> None:
        assert crowd.before == crowd.after
        assert crowd.counted == delivered(crowd.answers)
        assert "Slots are not as they should be" not in crowd.log


BEAMS = {"use_beam_search": True, "n": 3, "max_tokens": 6}
BASES = {COMPLETIONS: COMPLETION, CHAT: requests.CHAT}


@pytest.mark.parametrize(
    ("column", "fields"),
    [
        ("readouts", {"probes": PROBES}),
        ("log-probabilities", {"steering": STEERING}),
        ("receipts", {"steering": STEERING, "probes": []}),
    ],
)
@pytest.mark.cell("requests", "beam search", "{column}")
def test_beams_can_be_neither_steered_nor_probed(
    server: Server, column: str, fields: dict[str, Any], refused: Callable[[str], None]
) -> None:
    """vLLM rebuilds the requests of its search without what they carry."""
    for path, base in BASES.items():
        for stream in (False, True):
            answer = server.post(path, {**base, **BEAMS, **fields, "stream": stream})
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == next(iter(fields))
            refused(answer.json()["error"]["message"])


@pytest.mark.cell("requests", "beam search", "unsteered")
def test_beams_are_untouched(server: Server, oracle: Oracle) -> None:
    """Default probes do not read them, and do not stand in their way."""
    for path, base in BASES.items():
        answer = ask(server, path, {**base, **BEAMS, "temperature": 0})
        assert len({tuple(choice.token_ids) for choice in answer.choices}) == BEAMS["n"]
        assert not any(choice.shown for choice in answer.choices)
        check_logprobs(oracle, answer)


@pytest.mark.cell("requests", "beam search", "no leaks")
def test_beams_leave_nothing_behind(server: Server) -> None:
    kind = Kind(COMPLETIONS, BEAMS, lambda answers: None)
    seen = len(server.log.read_text(errors="replace"))
    counted, before = counters(server), alone(server, kind)
    others = [ask(server, COMPLETIONS, {**COMPLETION, "steering": steering}) for steering in OTHERS]
    grown = {key: value - counted.get(key, 0.0) for key, value in counters(server).items()}
    assert {key: value for key, value in grown.items() if value} == delivered(others)
    assert alone(server, kind) == before
    assert "Slots are not as they should be" not in server.log.read_text(errors="replace")[seen:]
