"""Sinks that fail."""

import logging

import pytest
from telemetry_support.outcomes import outcome

from pilothouse.core.records import OutcomeSink, RequestOutcome
from pilothouse.telemetry.sinks import Sinks


class Taker:
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[RequestOutcome] = []

    def observe(self, outcome: RequestOutcome) -> None:
        self.taken.append(outcome)


class Failing:
    """A sink that never works."""

    def observe(self, outcome: RequestOutcome) -> None:
        raise RuntimeError("no")


def test_a_failing_sink_disturbs_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Taker(), Taker()
    failing: OutcomeSink = Failing()
    sinks = Sinks(first, failing, last)
    with caplog.at_level(logging.ERROR):
        sinks.observe(outcome())
        sinks.observe(outcome())
    assert (len(first.taken), len(last.taken)) == (2, 2)
    assert caplog.text.count("Failing failed") == 1
    assert sinks.errors == {"Failing": 2}
