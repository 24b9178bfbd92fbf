"""One finished request, several takers."""

import logging

from pilothouse.core.records import OutcomeSink, RequestOutcome

logger = logging.getLogger(__name__)


class Sinks:
    """Passes every outcome to each sink. One that fails is reported once and disturbs nobody; it is tried again."""

    def __init__(self, *sinks: OutcomeSink) -> None:
        self._sinks = sinks
        self._reported: set[int] = set()

    def observe(self, outcome: RequestOutcome) -> None:
        """Hand `outcome` to every sink."""
        for number, sink in enumerate(self._sinks):
            try:
                sink.observe(outcome)
            except Exception:
                if number not in self._reported:
                    self._reported.add(number)
                    logger.exception("%s failed; further failures of it are not logged", type(sink).__name__)
